"""How fast a causal network takes a signal hop by hop, on one CPU core.

Prints the real-time factor (time for a hop over the hop's length) and the time per hop, median and 99th percentile, for
one hop a call as a live signal has it, and one line for the bar: faster than real time.

    python benchmarks/streaming.py [--config saf_tiny] [--set KEY=VALUE ...] [--seconds 20] [--cores 1] [--hops 1]
"""

import argparse
import os
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="saf_tiny", help="config whose causal version runs, with random weights")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the signal")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--hops", type=int, default=1, help="hops per call")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        # Before jax makes its threads: it then makes as many as there are cores left.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])

    import jax
    import numpy as np

    import saf_jax
    from saf_jax.training_step import init_state

    config = saf_jax.load_config(args.config, ["model.causal=true", *args.set])
    variables = init_state(config).variables
    rate, size = config.stft.sample_rate_hz, args.hops * config.stft.hop_samples
    chunks = np.random.default_rng(0).normal(0, 0.1, (round(args.seconds * rate) // size, size)).astype(np.float32)
    init, step = saf_jax.stream(config, variables)
    began = time.perf_counter()
    state, out = jax.block_until_ready(step(init(), chunks[0]))
    first = time.perf_counter() - began
    seconds = []
    for chunk in chunks:
        began = time.perf_counter()
        state, out = step(state, chunk)
        np.asarray(out)
        seconds.append(time.perf_counter() - began)
    length = size / rate
    print(f"{args.config}, causal: {saf_jax.count_parameters(variables):,} parameters, {args.cores} core(s)")
    print(f"first call (compilation)  {first:.1f} s")
    print(
        f"time per {1000 * length:g} ms          median {1000 * np.median(seconds):.2f} ms, "
        f"99 % {1000 * np.percentile(seconds, 99):.2f} ms, longest {1000 * max(seconds):.2f} ms"
    )
    factor = np.mean(seconds) / length
    print(f"real-time factor          {factor:.3f} (bar: below 1): {'reached' if factor < 1 else 'MISSED'}")
    return 0 if factor < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
