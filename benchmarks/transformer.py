"""What the SAF layers save against self-attention over the whole signal: cost, time and memory by length of audio.

For the networks of configs/paper.yaml (SAF), configs/transformer.yaml (as many parameters) and
configs/transformer_deep.yaml (as many layers), and for each length of audio, in a process of its own:
multiply-accumulates per second of audio, time over length of the audio and peak memory of `saf_jax.enhance`, and SAF's
over each transformer's. SAF works in pieces, whatever the length; a transformer needs the whole signal. Weights are
random: they change no time. The first call, which compiles, is not timed, unless it takes longer than `--once-above`
seconds: then it is the only one.

    python benchmarks/transformer.py [--seconds 10 30 60 120 300 600] [--limit-gb 16] [--limit-s 1800] \
        [--configs paper transformer transformer_deep] [--set KEY=VALUE ...]

Lengths whose attention would exceed `--limit-gb` are not tried, so that the machine is never driven into swap.
"""

import argparse
import json
import resource
import subprocess
import sys
import time


def measure(config_name: str, overrides: list[str], seconds: float, repeats: int, once_above: float) -> dict:
    """Runs in a process of its own."""
    import jax
    import numpy as np

    import saf_jax
    from saf_jax.training_step import init_state

    config = saf_jax.load_config(config_name, overrides)
    # Not by `init`, whose compilation would count as memory and is no part of enhancing.
    shapes = jax.eval_shape(lambda: init_state(config)).variables
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), shapes)
    rate = config.stft.sample_rate_hz
    samples = rng.normal(0, 0.1, round(seconds * rate)).astype(np.float32)

    def clocked() -> float:
        began = time.perf_counter()
        saf_jax.enhance(config, variables, samples, rate)
        return time.perf_counter() - began

    first = clocked()
    best = first if first > once_above else min(clocked() for _ in range(repeats))
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"real_time_factor": best / seconds, "peak_memory_gb": memory_gb}


def estimated_gb(config, seconds: float) -> float:
    """Memory of attention over time; 0 for a network that works in pieces."""
    from saf_jax.model.transformer import attention_bytes

    if config.model.layer_kind != "transformer":
        return 0.0
    stft = config.stft
    return attention_bytes(config.model, stft.bins, stft.frames(round(seconds * stft.sample_rate_hz))) / 1e9


def in_own_process(limit_s: float, *arguments) -> dict | str:
    """What was measured, or in words why it was not."""
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return f"over {limit_s:g} s"
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["paper", "transformer", "transformer_deep"])
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="for all configs")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0, 60.0, 120.0, 300.0, 600.0])
    parser.add_argument("--limit-gb", type=float, default=16.0, help="attention that needs more is not tried")
    parser.add_argument("--limit-s", type=float, default=1800.0, help="a measurement that takes longer is ended")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once-above", type=float, default=60.0, metavar="S")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        from saf_jax.huge_pages import restart_with_huge_pages

        restart_with_huge_pages()
        print(json.dumps(measure(*json.loads(args.measure))))
        return 0

    import saf_jax
    from saf_jax.model.cost import count_costs, count_macs_per_second

    configs = {name: saf_jax.load_config(name, args.set) for name in args.configs}
    for name, config in configs.items():
        print(
            f"{name}: {config.model.layers} layers ({config.model.layer_kind}), {count_costs(config)[0]:,} parameters"
        )
    print("\nratio: that of the first network over this one's (cost, time, memory)\n")
    print("config            audio s  GMAC/s  time/length  peak GB  ratio")
    for seconds in args.seconds:
        reference = None
        for name, config in configs.items():
            cost, needed = count_macs_per_second(config, seconds) / 1e9, estimated_gb(config, seconds)
            found: dict | str = f"out of memory at {needed:.0f} GB estimated"
            if needed <= args.limit_gb:
                found = in_own_process(args.limit_s, name, args.set, seconds, args.repeats, args.once_above)
            start = f"{name:16}  {seconds:7g}  {cost:6.2f}  "
            if isinstance(found, str):
                print(start + found + (f"  {reference[0] / cost:.2f} - -" if reference else ""), flush=True)
                continue
            row = (cost, found["real_time_factor"], found["peak_memory_gb"])
            ratio = " ".join(f"{ours / theirs:.2f}" for ours, theirs in zip(reference, row)) if reference else ""
            print(f"{start}{row[1]:11.4f}  {row[2]:7.2f}  {ratio}".rstrip(), flush=True)
            if name == args.configs[0]:
                reference = row
    return 0


if __name__ == "__main__":
    sys.exit(main())
