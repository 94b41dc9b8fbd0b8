"""Where the time of a compiled program goes, and how near it comes to what the device can do.

A profile gives seconds for each operation of the compiled program; the program's text says which part of the network
each came from. Works on CPU and GPU.
"""

import collections
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_CONTROL_FLOW = ("cond", "branch_", "while", "body", "closed_call")


class Share(NamedTuple):
    """Seconds that the operations of one kind took."""

    kind: str
    seconds: float


def operation_origins(program_text: str) -> dict[str, str]:
    """By name of operation in a compiled program's text, where in the model it came from (XLA's "op_name")."""
    origins: dict[str, str] = {}
    calls: dict[str, str] = {}
    roots: dict[str, str] = {}
    computation = ""
    for line in program_text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = opened[1]
        if not (named := re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)):
            continue
        if origin := re.search(r'op_name="([^"]*)"', line):
            origins[named[2]] = origin[1]
            if named[1]:
                roots[computation] = origin[1]
        if called := re.search(r"calls=%?([\w.\-]+)", line):
            calls[named[2]] = called[1]
    # Some fusions tell only what their last operation is.
    return {name: roots[called] for name, called in calls.items() if called in roots} | origins


def part_of(origin: str) -> str:
    """The part of the training step that an operation belongs to, such as "backward, depthwise"."""
    modules = re.search(r"(transpose\()?jvp\(SAFNet\)+/(.*)", origin)
    if modules is None:
        if "jvp(" not in origin:
            return "optimiser, averages and checks"
        return ("backward" if "transpose(" in origin else "forward") + ", STFT and loss"
    # Names of flax modules come first; then "jit(...)", control flow and the primitive itself.
    names = [re.sub(r"_?\d+$", "", name) for name in modules[2].split("/")[:-1]]
    inner = [name for name in names if "(" not in name and not name.startswith(_CONTROL_FLOW)]
    kind = inner[-1] if inner else "network's input and output"
    return f"{'backward' if modules[1] else 'forward'}, {kind}"


def profile(run: Callable[[], None], program_text: str, steps: int) -> tuple[list[Share], float]:
    """Profiles some calls of a compiled program.

    Args:
      run: calls it once and waits for it.
      program_text: `compiled.as_text()`.
      steps: how often it is called.

    Returns:
      Seconds a call by part of the step, the largest first, summed over all threads; and the part of the profiled time
      whose origin is known.
    """
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                run()
        [path] = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    origins = operation_origins(program_text)
    seconds: dict[str, float] = collections.defaultdict(float)
    known = total = 0.0
    for name, duration in operation_seconds(data):
        origin = origins.get(name)
        total += duration
        known += duration if origin else 0.0
        seconds[part_of(origin) if origin else "unknown"] += duration / steps
    shares = [Share(kind, value) for kind, value in sorted(seconds.items(), key=lambda item: -item[1])]
    return shares, known / total if total else 0.0


def operation_seconds(data: Any) -> list[tuple[str, float]]:
    """Names and own seconds of the operations in a profile, without what they ran inside them, as loops do."""
    on_device = [plane for plane in data.planes if plane.name.startswith("/device:GPU")]
    lines = [
        line
        for plane in on_device or data.planes
        for line in plane.lines
        # A GPU's operations stand on several lines, of which the streams' hold each once.
        if not on_device or line.name.startswith("Stream")
    ]
    found = []
    for line in lines:
        spans = []
        for event in line.events:
            operation = dict(event.stats).get("hlo_op")
            if operation is not None:
                spans.append((event.start_ns, -event.duration_ns, operation))
        open_spans: list[list] = []
        for start, negative, operation in sorted(spans):
            while open_spans and open_spans[-1][0] <= start:
                found.append(tuple(open_spans.pop()[1:]))
            if open_spans:
                open_spans[-1][2] += negative / 1e9
            open_spans.append([start - negative, operation, -negative / 1e9])
        found += [tuple(span[1:]) for span in open_spans]
    return found


def best_rates(matrix: int, megabytes: int, dtype: str = "float32") -> tuple[float, float]:
    """This device's own best rates, measured now: FLOP/s of a square matrix product, bytes/s of a copy.

    Args:
      matrix: its side.
      megabytes: what is copied; counted twice, read and written.
      dtype: of the matrices.
    """
    a = jnp.asarray(np.random.default_rng(0).standard_normal((matrix, matrix)), dtype)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    x = jnp.ones((megabytes * 250_000,), jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(x).compile()
    return (
        2 * matrix**3 / best_seconds(lambda: product(a)),
        2 * megabytes * 1e6 / best_seconds(lambda: copy(x)),
    )


def best_seconds(call: Callable[[], Any], rounds: int = 7) -> float:
    """Shortest of some calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def median_seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; one of each per round, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            # The first round touches fresh memory.
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
