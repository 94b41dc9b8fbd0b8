"""How fast `saf_jax.enhance` is, and how near to what this machine's arithmetic allows.

For each number of cores and each length of audio, in a process of its own: real-time factor (time over length of the
audio, STFT and all), time of the first call (compilation), peak memory, and the fraction of the rate at which this
machine multiplies float32 matrices of 2048 x 2048 (best of the same process, measured between the calls) that the
network's counted arithmetic reaches. Weights are random: they change no time.

    python benchmarks/inference.py [--config paper saf_plus saf_tiny] [--seconds 1 10 60] [--cores 1 2] [--whole]

`--whole` adds the network applied to the whole signal at once, which is what working in pieces is held against.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

BARS = {"paper": 0.20, "saf_plus": 0.13, "saf_tiny": 0.02}
"""Largest real-time factors on two cores."""
LEAST_FRACTION = {"paper": 0.33}
MOST_MEMORY_MB = {"paper": 800}


def measure(config_name: str, seconds: float, cores: int, whole: bool, repeats: int) -> dict:
    """Runs in a process of its own."""
    if hasattr(os, "sched_setaffinity"):
        # Before jax makes its threads: it then makes as many as there are cores left.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    import jax
    import jax.numpy as jnp
    import numpy as np

    import saf_jax
    from saf_jax.enhancement import enhance_padded
    from saf_jax.model.cost import count_macs_per_second
    from saf_jax.training_step import init_state

    config = saf_jax.load_config(config_name)
    # Not by `init`, whose compilation would count as memory and is no part of enhancing.
    shapes = jax.eval_shape(lambda: init_state(config)).variables
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), shapes)
    rate = config.stft.sample_rate_hz
    samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * rate)).astype(np.float32)

    def enhance() -> None:
        if whole:
            jax.block_until_ready(enhance_padded(config, variables, samples[None], np.array([len(samples)])))
        else:
            saf_jax.enhance(config, variables, samples, rate)

    matrix = jnp.ones((2048, 2048))
    multiply = jax.jit(jnp.matmul)

    def clocked(call) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    first = clocked(enhance)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    multiply(matrix, matrix).block_until_ready()
    times, products = [], []
    for _ in range(repeats):
        # By turns, so that both see the same state of the machine.
        times.append(clocked(enhance))
        products += [clocked(lambda: multiply(matrix, matrix).block_until_ready()) for _ in range(3)]
    matmul_rate = 2 * 2048**3 / min(products)
    operations = 2 * count_macs_per_second(config, seconds) * seconds
    return {
        "first_call_s": first,
        "real_time_factor": min(times) / seconds,
        "median_real_time_factor": float(np.median(times)) / seconds,
        "peak_memory_mb": memory,
        "matmul_gflop_per_s": matmul_rate / 1e9,
        "fraction": operations / min(times) / matmul_rate,
    }


def in_own_process(*arguments) -> dict:
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", nargs="+", default=["paper", "saf_plus", "saf_small", "saf_tiny"])
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0, 60.0])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="also the whole signal at once")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        from saf_jax.huge_pages import restart_with_huge_pages

        restart_with_huge_pages()
        print(json.dumps(measure(*json.loads(args.measure))))
        return 0

    missed = []
    print("config    cores  audio s  RTF best  median  first call s  peak MB  matmul GFLOP/s  fraction")
    for name in args.config:
        for cores in args.cores:
            for seconds in args.seconds:
                for whole in [False, True] if args.whole else [False]:
                    found = in_own_process(name, seconds, cores, whole, args.repeats)
                    print(
                        f"{name:9} {cores:5}  {seconds:7g}  {found['real_time_factor']:8.4f}  "
                        f"{found['median_real_time_factor']:6.4f}  {found['first_call_s']:12.1f}  "
                        f"{found['peak_memory_mb']:7.0f}  {found['matmul_gflop_per_s']:14.0f}  "
                        f"{found['fraction']:8.2f}" + ("  whole signal at once" if whole else ""),
                        flush=True,
                    )
                    # Of a short signal much of the time goes into what lies before its first frame and behind its last.
                    if cores == 2 and seconds >= 10 and not whole:
                        missed += _missed(name, seconds, found)
    for line in missed:
        print("MISSED " + line)
    return 1 if missed else 0


def _missed(name: str, seconds: float, found: dict) -> list[str]:
    limits = [
        ("real_time_factor", found["real_time_factor"] <= BARS.get(name, float("inf"))),
        ("fraction", found["fraction"] >= LEAST_FRACTION.get(name, 0.0)),
        ("peak_memory_mb", found["peak_memory_mb"] <= MOST_MEMORY_MB.get(name, float("inf"))),
    ]
    return [f"{name}, {seconds:g} s: {what} {found[what]:.3f}" for what, reached in limits if not reached]


if __name__ == "__main__":
    sys.exit(main())
