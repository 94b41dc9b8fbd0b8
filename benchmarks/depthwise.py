"""The depth-wise convolution's implementations against each other, and against torch where it is installed.

Prints a table of median milliseconds for the shapes that the network uses, forward and forward + backward (gradients of
the input and of the kernel), with the runs of one row interleaved so that a busy machine slows them alike, and one line
for the bar: forward + backward of the 11 x 11 at (1, 200, 161, 64) at least 8 times faster than `lax`'s convolution.
With --accelerator, the shapes of a training step on a GPU in bfloat16, and no bar.

    python benchmarks/depthwise.py [--rounds 7] [--only 11x11] [--threads 2] [--markdown] [--accelerator]
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
from typing import NamedTuple


class Case(NamedTuple):
    """One shape: input `[B, T, F, C]`, kernel sides, dilation in time, causal or centred."""

    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    dilation: int = 1
    causal: bool = False

    @property
    def name(self) -> str:
        text = f"{self.kernel[0]}x{self.kernel[1]} at {self.shape}"
        return text + (f", dilation {self.dilation}" if self.dilation > 1 else "") + (", causal" if self.causal else "")


BAR_CASE, BAR_RATIO = Case((1, 200, 161, 64), (11, 11)), 8.0
CASES = [
    BAR_CASE,
    Case((1, 300, 81, 64), (11, 11)),
    Case((4, 300, 81, 64), (11, 11)),
    Case((1, 300, 41, 32), (11, 11)),
    Case((1, 300, 81, 64), (21, 21)),
    Case((1, 300, 81, 64), (5, 5)),
    *(Case((1, 300, 81, 64), (3, 1), dilation) for dilation in (1, 2, 4, 8)),
    *(Case((1, 300, 161, 64), (3, 3), dilation) for dilation in (1, 2, 4, 8)),
    Case((1, 300, 161, 64), (3, 3), 8, causal=True),
    Case((4, 300, 161, 64), (3, 3), 4),
    Case((1, 300, 41, 16), (3, 3), 2),
]
IMPLEMENTATIONS = ("lax", "shift", "fft", "chosen")
# What 16 crops of 2 s bring to the layers, the encoders and the temporal blocks of configs/saf.yaml. "shift" is not for
# accelerators.
ACCELERATOR_CASES = [
    Case((16, 201, 81, 64), (11, 11)),
    Case((16, 201, 161, 64), (3, 3), 2),
    Case((16, 201, 81, 64), (3, 1), 4),
]
ACCELERATOR_IMPLEMENTATIONS = ("lax", "fft", "chosen")


def jax_functions(case: Case, implementations: tuple[str, ...], dtype: str):
    """Compiled calls, `{(implementation, direction): call}`, and their largest relative difference from lax."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from saf_jax.model.depthwise import depthwise_conv2d

    random = np.random.default_rng(0)
    x, gradient = (jnp.asarray(random.standard_normal(case.shape), dtype) for _ in range(2))
    kernel = jnp.asarray(random.standard_normal((*case.kernel, case.shape[3])), dtype)
    calls, results = {}, {}
    for name in implementations:

        def forward(x, kernel, name=name):
            implementation = None if name == "chosen" else name
            return depthwise_conv2d(
                x, kernel, time_dilation=case.dilation, causal=case.causal, implementation=implementation
            )

        def both(x, kernel, gradient, forward=forward):
            y, pull_back = jax.vjp(forward, x, kernel)
            return y, *pull_back(gradient)

        forward_call = jax.jit(forward).lower(x, kernel).compile()
        both_call = jax.jit(both).lower(x, kernel, gradient).compile()
        calls[name, "forward"] = lambda call=forward_call: jax.block_until_ready(call(x, kernel))
        calls[name, "both"] = lambda call=both_call: jax.block_until_ready(call(x, kernel, gradient))
        results[name] = calls[name, "both"]()
    difference = max(
        float(jnp.max(jnp.abs(ours - reference)) / jnp.max(jnp.abs(reference)))
        for name in implementations
        for ours, reference in zip(results[name], results["lax"])
    )
    return calls, difference


def torch_functions(case: Case, threads: int):
    """The same for torch's conv2d with one group per channel, in its faster memory layout (channels last)."""
    import torch

    torch.set_num_threads(threads)
    (batch, frames, bands, channels), (kh, kw) = case.shape, case.kernel
    span = (kh - 1) * case.dilation
    x = torch.randn(batch, channels, frames, bands).to(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    padding = (0 if case.causal else span // 2, kw // 2)
    convolution = torch.nn.Conv2d(
        channels, channels, (kh, kw), padding=padding, dilation=(case.dilation, 1), groups=channels, bias=False
    ).to(memory_format=torch.channels_last)

    def run(x):
        return convolution(torch.nn.functional.pad(x, (0, 0, span, 0)) if case.causal else x)

    def forward():
        with torch.no_grad():
            run(x)

    def both():
        inputs = x.detach().requires_grad_(True)
        convolution.zero_grad()
        run(inputs).backward(gradient)

    return {("torch", "forward"): forward, ("torch", "both"): both}


def measure(calls, rounds: int) -> dict:
    """Median milliseconds of each call, one run of each per round."""
    times = {key: [] for key in calls}
    for _ in range(2):  # the first rounds touch fresh memory
        for call in calls.values():
            call()
    for _ in range(rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            times[key].append(1e3 * (time.perf_counter() - start))
    return {key: statistics.median(values) for key, values in times.items()}


def machine() -> str:
    """Processor, cores and versions on one line."""
    import jax

    model = "unknown processor"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    device = jax.devices()[0]
    return f"{model}, {os.cpu_count()} cores, jax {jax.__version__}, {device.platform} ({device.device_kind})"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="runs of each implementation per shape")
    parser.add_argument("--only", default="", help="only the shapes whose name contains this, such as 11x11")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads for torch")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--accelerator", action="store_true", help="the shapes of a training step on a GPU, bfloat16")
    options = parser.parse_args(arguments)

    from saf_jax.huge_pages import restart_with_huge_pages

    # As training does: otherwise the page faults of fresh arrays are half of what a small kernel takes.
    restart_with_huge_pages()
    on_cpu = not options.accelerator
    cases, implementations, dtype = (
        (CASES, IMPLEMENTATIONS, "float32") if on_cpu else (ACCELERATOR_CASES, ACCELERATOR_IMPLEMENTATIONS, "bfloat16")
    )
    columns = [*implementations, *(["torch"] if on_cpu and importlib.util.find_spec("torch") else [])]
    print(machine())
    print("median ms, forward / forward + backward; ratio = lax over chosen; difference = largest, relative to lax")
    header = ["shape", *columns, "ratio", "difference"]
    row_format = "| {:<44} |" + " {:>15} |" * len(columns) + " {:>13} | {:>10} |"
    print(row_format.format(*header))
    if options.markdown:
        print("|" + "---|" * len(header))
    bar = None
    for case in cases:
        if options.only not in case.name:
            continue
        calls, difference = jax_functions(case, implementations, dtype)
        if "torch" in columns:
            calls |= torch_functions(case, options.threads)
        times = measure(calls, options.rounds)
        ratios = [times["lax", direction] / times["chosen", direction] for direction in ("forward", "both")]
        cells = [f"{times[name, 'forward']:.2f} / {times[name, 'both']:.2f}" for name in columns]
        print(row_format.format(case.name, *cells, "{:.1f} / {:.1f}".format(*ratios), f"{difference:.1e}"), flush=True)
        if case == BAR_CASE:
            bar = ratios[1]
    if bar is None:
        return 0
    verdict = "reached" if bar >= BAR_RATIO else "missed"
    print(f"{BAR_CASE.name}, forward + backward: {bar:.1f} times faster than lax (bar {BAR_RATIO:.0f}, {verdict})")
    return 0 if bar >= BAR_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
