"""How fast training is, what bounds it, and what it sends between devices.

    python benchmarks/training.py [--config paper] [--set KEY=VALUE ...] [--parts step,operations,loop,...]

Parts, each printed as lines with ratios of this run:

- step: the compiled training step on synthetic batches: forward, backward, optimiser; memory; audio-seconds per second;
  FLOP/s and bytes/s (XLA's count) beside the best of a matrix product and of a copy on the same device.
- operations: share of each kind of operation, from a profile.
- loop: the whole training loop with the real data pipeline against the bare step. Bar: at most 5 % slower. Data: the
  recordings that SAF_AUDIO names, mixed on the fly, else generated pairs.
- communication: bytes that 2, 4 and 8 devices sum up in a step, counted in the programs compiled for them (simulated).
- pages: huge pages on a CPU, on against off: the step, and three operations.
- norms: the dense block as it is (norm, then depth-wise convolution) against the other order.
- terms: value and gradient of each term of the loss against the step, the metric discriminator aside.
- cores: the step on a CPU with one device for all cores against one for each (as many as share the batch), in turn.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from saf_jax.config import Config, LossConfig, load_config

PARTS = ("step", "operations", "loop", "communication", "pages", "norms", "terms", "cores")
LOOP_BAR = 1.05
# A small block, as in configs/tiny.yaml: what it writes is small enough for the caches, so that page faults show.
SMALL_BLOCK = ((4, 200, 161, 16), ["model.width=16", "model.dense_dilations=[1,2]"])


def print_machine() -> None:
    from depthwise import machine

    print(machine() + f", load {os.getloadavg()[0]:.1f}")


def pieces(config: Config):
    """Compiled calls of the step's pieces: forward, forward + backward, everything."""
    import jax

    from saf_jax import parallel
    from saf_jax.losses import weighted_sum
    from saf_jax.train_cost import BareStep
    from saf_jax.training_step import batch_terms, build_model

    model = build_model(config, training=True)
    step = BareStep(config)

    def loss(params: Any, state: Any, batch: Any):
        variables = state.replace(params=params).variables
        return weighted_sum(batch_terms(config, model, variables, batch, train=True)[0], config.loss)

    def forward(state: Any, batch: Any):
        return None, parallel.sum_over_devices(loss(state.params, state, batch))

    def both(state: Any, batch: Any):
        return None, parallel.sum_over_devices(jax.grad(loss)(state.params, state, batch))

    calls = {"whole step": step.run}
    for name, function in {"forward": forward, "forward and backward": both}.items():
        compiled = parallel.map_over_devices(function).lower(step.state, step.batch).compile()
        calls[name] = lambda compiled=compiled: compiled(step.state, step.batch)[1]
    return step, calls


def measure_step(config: Config, rounds: int) -> None:
    import jax
    from profiles import best_rates, median_seconds

    from saf_jax.model.cost import count_macs_per_second

    step, calls = pieces(config)
    seconds = median_seconds(calls, rounds)
    whole, forward, both = seconds["whole step"], seconds["forward"], seconds["forward and backward"]
    audio_seconds = config.train.batch_size * config.data.crop_seconds
    memory = step.memory_gb()
    print(f"step: {whole:.3f} s for {audio_seconds:g} s of audio: {audio_seconds / whole:.1f} audio-s/s")
    print(f"  forward {forward:.3f} s, backward {both - forward:.3f} s, the rest {whole - both:.3f} s")
    print(f"  backward over forward: {(both - forward) / forward:.2f}; compiled in {step.compile_seconds:.1f} s")
    print("  memory of a device (GB): " + ", ".join(f"{name} {value:.3f}" for name, value in memory.items()))
    gpu = jax.default_backend() != "cpu"
    dtype = "bfloat16" if gpu and config.train.precision == "bfloat16" else "float32"
    flops, bandwidth = best_rates(8192 if gpu else 2048, 4000 if gpu else 250, dtype)
    # Three passes of the network's products (forward, input's and weights' gradients).
    counted = 3 * 2 * count_macs_per_second(config, config.data.crop_seconds) * audio_seconds / whole
    analysis = step.compiled.cost_analysis()
    for name, rate, best, unit in (
        ("the network's own arithmetic, three passes", counted, flops, "FLOP/s"),
        ("all arithmetic that XLA counts", analysis["flops"] / whole, flops, "FLOP/s"),
        ("all memory traffic that XLA counts", analysis["bytes accessed"] / whole, bandwidth, "bytes/s"),
    ):
        print(f"  {name}: {rate / 1e9:.1f} G{unit}, {100 * rate / best:.1f} % of the best {best / 1e9:.1f} ({dtype})")


def measure_operations(config: Config, steps: int) -> None:
    from profiles import profile

    from saf_jax.train_cost import BareStep

    step = BareStep(config)
    shares, known = profile(step.run, step.compiled.as_text(), steps)
    total = sum(share.seconds for share in shares)
    print(f"operations: {total:.3f} s of all threads a step; the origin of {100 * known:.1f} % is known")
    for share in shares:
        if share.seconds > 0.005 * total:
            print(f"  {100 * share.seconds / total:5.1f} %  {share.kind}")


def loop_config(config: Config, folder: Path, steps: int) -> Config:
    """The config on real recordings, with nothing but steps and lines of the log."""
    from pipeline import make_recordings

    if root := os.environ.get("SAF_AUDIO"):
        pools = {f"train_{kind}": (str(Path(root) / "train" / kind),) for kind in ("clean", "noise", "rir")}
        valid = {
            f"valid_{kind}": (str(Path(root) / "voicebank_demand" / "train" / kind),) for kind in ("clean", "noisy")
        }
        data = dataclasses.replace(config.data, **pools, **valid)
    else:
        make_recordings(folder)
        names = {f"{part}_{kind}": (str(folder / kind),) for part in ("train", "valid") for kind in ("clean", "noisy")}
        data = dataclasses.replace(config.data, **names)
    train = dataclasses.replace(
        config.train, steps=steps, validate_every=steps, log_every=max(1, steps // 10), score_files=0, init_from=""
    )
    return dataclasses.replace(config, data=data, train=train)


def measure_loop(config: Config, steps: int, rounds: int) -> bool:
    from saf_jax.train_cost import BareStep
    from saf_jax.training import train_and_evaluate

    step = BareStep(config)
    before = step.time(rounds)
    with tempfile.TemporaryDirectory() as folder:
        real = loop_config(config, Path(folder), steps)
        train_and_evaluate(real, Path(folder) / "run", quiet=True)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
    after = step.time(rounds)
    rates = [line["audio_seconds_per_second"] for line in lines if line["event"] == "train"]
    # The first line holds the compilation.
    loop = statistics.median(rates[1:])
    bare = config.train.batch_size * config.data.crop_seconds / statistics.mean([before, after])
    ratio = bare / loop
    verdict = "reached" if ratio <= LOOP_BAR else "MISSED"
    print(f"loop: {loop:.1f} audio-s/s, bare step {bare:.1f} (before {before:.3f} s, after {after:.3f} s a step)")
    print(f"  the loop's step takes {ratio:.3f} of the bare step's time (bar {LOOP_BAR}, {verdict})")
    return ratio <= LOOP_BAR


_COUNT_REDUCED = """
import sys, jax
from saf_jax.config import load_config
from saf_jax.train_cost import BareStep
step = BareStep(load_config(sys.argv[1], sys.argv[2:]))
print(sum(leaf.nbytes for leaf in jax.tree.leaves(step.state.params)))
print(step.compiled.as_text())
"""


def reduced_bytes(program_text: str) -> tuple[int, int]:
    """Number of sums over devices in a compiled program's text, and the bytes of their results.

    Sums within a loop's body are counted once: the training step has none there.
    """
    sizes = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}
    count = total = 0
    for line in program_text.splitlines():
        found = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) all-reduce(?:-start)?\(", line)
        if found:
            count += 1
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", found[1]):
                elements = 1
                for side in filter(None, shape.split(",")):
                    elements *= int(side)
                total += sizes[kind] * elements
    return count, total


def measure_communication(name: str, settings: list[str]) -> None:
    for devices in (2, 4, 8):
        # The volume does not depend on the crop: a short one compiles sooner.
        own = [*settings, "data.crop_seconds=0.25", f"train.batch_size={devices}", "train.accumulate=1"]
        flags = f"--xla_force_host_platform_device_count={devices}"
        result = subprocess.run(
            [sys.executable, "-c", _COUNT_REDUCED, name, *own],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        parameters, program = result.stdout.split("\n", 1)
        count, total = reduced_bytes(program)
        print(
            f"communication, {devices} devices: {total / 1e6:.3f} MB summed in {count} sums a step, "
            f"{total / int(parameters):.3f} times the parameters' size; a ring sends "
            f"{2 * (devices - 1) / devices * total / 1e6:.3f} MB per device"
        )


def operations_of_a_block() -> dict[str, Any]:
    """Compiled forward + backward of a small dense block, its norm and its depth-wise convolution."""
    import jax.numpy as jnp
    import numpy as np

    from saf_jax.model.layers import DenseBlock, DepthwiseConv, Norm

    shape, settings = SMALL_BLOCK
    model = load_config("paper", settings).model
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    calls = {}
    for name, module, arguments in (
        ("dense block", DenseBlock(model), (None, True)),
        ("norm", Norm(model), (None, True)),
        ("depth-wise convolution", DepthwiseConv(3, 3), (None,)),
    ):
        calls[name] = forward_and_backward(module, x, arguments)
    return calls


def forward_and_backward(module: Any, x: Any, arguments: tuple) -> Any:
    """A compiled call of a module's value and its gradients by input and parameters."""
    import jax
    import jax.numpy as jnp

    variables = module.init(jax.random.key(0), x, *arguments)

    def loss(variables: Any, x: Any):
        return jnp.sum(module.apply(variables, x, *arguments) ** 2)

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(variables, x).compile()
    return lambda: compiled(variables, x)


def measure_pages(name: str, settings: list[str], rounds: int) -> None:
    """Runs this script anew with and without huge pages, alternately: glibc reads the setting at the start."""
    found: dict[int, dict[str, list[tuple[float, float]]]] = {0: {}, 1: {}}
    for _ in range(2):
        for huge in found:
            environment = {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb={huge}"}
            line = last_line_of("page_times", name, settings, rounds, environment)
            for key, value in json.loads(line).items():
                found[huge].setdefault(key, []).append(value)
    for key in found[0]:
        (off, off_faults), (on, on_faults) = (min(found[huge][key]) for huge in (0, 1))
        print(
            f"pages, {key}: without huge pages {1e3 * off:.1f} ms and {off_faults:.0f} page faults, "
            f"with them {1e3 * on:.1f} ms and {on_faults:.0f}: {off / on:.2f} times as long"
        )


def page_times(config: Config, rounds: int) -> None:
    """Prints best seconds and page faults of a call by name, as JSON."""
    import resource

    from profiles import best_seconds

    from saf_jax.train_cost import BareStep

    def measured(call: Any, calls: int) -> tuple[float, float]:
        best_seconds(call, 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        best = best_seconds(call, calls)
        return best, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls

    times = {name: measured(call, 5 * rounds) for name, call in operations_of_a_block().items()}
    print(json.dumps({**times, "training step": measured(BareStep(config).run, rounds)}))


def measure_cores(name: str, settings: list[str], rounds: int) -> None:
    """Runs this script anew with one device and with several, alternately: devices are fixed at the start."""
    from saf_jax.worker_processes import usable_cores

    train = load_config(name, settings).train
    # Devices share a batch evenly: not every core has one if the batch is small.
    counts = (1, math.gcd(usable_cores(), train.batch_size // train.accumulate))
    found: list[list[float]] = [[], []]
    for _ in range(2):
        for seconds, devices in zip(found, counts):
            environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
            seconds.append(float(last_line_of("step_time", name, settings, rounds, environment)))
    one, each = map(min, found)
    runs = "; ".join(f"{n}: {', '.join(f'{s:.3f}' for s in seconds)} s a step" for n, seconds in zip(counts, found))
    print(f"cores, {name}: {one / each:.2f} times as fast with {counts[1]} devices as with one ({runs})")


def last_line_of(part: str, name: str, settings: list[str], rounds: int, environment: dict[str, str]) -> str:
    """What a part prints last in a process of its own."""
    own = ["--set", *settings] if settings else []
    result = subprocess.run(
        [sys.executable, __file__, "--parts", part, "--config", name, "--rounds", str(rounds), *own],
        env={**os.environ, **environment}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return result.stdout.splitlines()[-1]


def measure_norms(config: Config, rounds: int) -> None:
    """Forward + backward of the network's dense block with its norm before and after the depth-wise convolution."""
    import flax.linen as nn
    import jax.numpy as jnp
    import numpy as np
    from profiles import median_seconds

    from saf_jax.model.layers import DenseBlock, DepthwiseConv, Norm, Pointwise, PReLU

    model = config.model

    class NormLast(nn.Module):
        @nn.compact
        def __call__(self, x, mask, train):
            features = [x]
            for dilation in model.dense_dilations:
                y = Pointwise(model.width, use_bias=False)(*features)
                y = DepthwiseConv(3, 3, dilation, model.causal)(y, mask)
                features.append(PReLU()(Norm(model)(y, mask, train)))
            return features[-1]

    frames, bands = config.stft.frames(3 * config.stft.sample_rate_hz), config.stft.bins
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, frames, bands, model.width)), jnp.float32)
    calls = {
        "before": forward_and_backward(DenseBlock(model), x, (None, True)),
        "after": forward_and_backward(NormLast(), x, (None, True)),
    }
    seconds = median_seconds(calls, 3 * rounds)
    ratio = seconds["after"] / seconds["before"]
    print(
        f"norms: dense block {x.shape}, norm before the depth-wise convolution {1e3 * seconds['before']:.1f} ms, "
        f"after it {1e3 * seconds['after']:.1f} ms: {ratio:.2f} times as long"
    )


def calls_of_terms(config: Config) -> dict[str, Any]:
    """Compiled value and gradient of each term of the loss, for a whole batch on one device."""
    import jax

    from saf_jax.losses import loss_terms, weighted_sum
    from saf_jax.signal_path import analyse
    from saf_jax.train_cost import synthetic_batch
    from saf_jax.training_step import compared_signals

    @jax.jit
    def compared(batch: Any):
        noisy = analyse(batch["noisy"], config)
        return compared_signals(0.8 * noisy.spectrum, noisy, batch, config)

    signals = compared(synthetic_batch(config))
    free = {name: getattr(signals, name) for name in ("estimate", "resynthesised", "estimated_samples")}
    off = {field.name: 0.0 for field in dataclasses.fields(LossConfig)}
    calls = {}
    for name in off:
        if name == "metric":
            continue
        only = dataclasses.replace(config, loss=LossConfig(**{**off, name: 1.0}))

        def loss(free: Any, signals: Any, only: Config = only):
            return weighted_sum(loss_terms(signals._replace(**free), only), only.loss)

        compiled = jax.jit(jax.value_and_grad(loss)).lower(free, signals).compile()
        calls[name] = lambda compiled=compiled: compiled(free, signals)
    return calls


def measure_terms(config: Config, rounds: int) -> None:
    from profiles import median_seconds

    from saf_jax.train_cost import BareStep

    seconds = median_seconds({"whole step": BareStep(config).run, **calls_of_terms(config)}, rounds)
    whole = seconds.pop("whole step")
    print(f"terms: of a step of {whole:.3f} s")
    for name, value in seconds.items():
        print(f"  {100 * value / whole:5.2f} %  {name}")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="paper", help="config to train")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each thing is timed")
    parser.add_argument("--steps", type=int, default=50, help="steps of the loop")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - {*PARTS, "page_times", "step_time"}:
        parser.error(f"unknown part {sorted(unknown)[0]}: must be some of {', '.join(PARTS)}")

    from saf_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    config = load_config(options.config, options.set)
    if parts == ["step_time"]:
        from saf_jax.train_cost import BareStep

        print(BareStep(config).time(options.rounds))
        return 0
    if parts == ["page_times"]:
        page_times(config, options.rounds)
        return 0
    reached = True
    print_machine()
    if "step" in parts:
        measure_step(config, options.rounds)
    if "operations" in parts:
        measure_operations(config, options.rounds)
    if "loop" in parts:
        reached = measure_loop(config, options.steps, options.rounds)
    if "communication" in parts:
        measure_communication(options.config, options.set)
    if "pages" in parts:
        measure_pages(options.config, options.set, options.rounds)
    if "norms" in parts:
        measure_norms(config, options.rounds)
    if "terms" in parts:
        measure_terms(config, options.rounds)
    if "cores" in parts:
        measure_cores(options.config, options.set, options.rounds)
    return 0 if reached else 1


# Processes that prepare examples import this module again.
if __name__ == "__main__":
    sys.exit(main())
