"""How fast evaluation is: what the pool of processes costs, what a second process brings, what each metric takes.

Reads the real test pairs below the folder that SAF_AUDIO names, repeats them to the size of the official test set, and
prints ratios, each with its bar:

    python benchmarks/evaluation.py [--files 824] [--speedup-files 118] [--rounds 2]
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from saf_jax import audio, metrics
from saf_jax.evaluation import evaluate


def repeated(source: Path, target: Path, files: int) -> Path:
    """Links the pairs as often as needed, with an "enhanced" version that differs from both."""
    pairs = audio.list_pairs(source / "clean", source / "noisy")
    made = target / "made"
    for pair in pairs:
        clean, noisy = audio.read(pair.clean), audio.read(pair.noisy)
        mixed = clean._replace(samples=0.8 * clean.samples + 0.2 * noisy.samples, format="WAV")
        audio.write(made / f"{pair.name}.wav", mixed)
    for number in range(files):
        pair = pairs[number % len(pairs)]
        sides = {"clean": pair.clean, "noisy": pair.noisy, "enhanced": made / f"{pair.name}.wav"}
        for side, path in sides.items():
            link = target / side / f"{pair.name}_{number // len(pairs):02d}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return target


def timed(folder: Path, jobs: int) -> tuple[float, float]:
    """Wall seconds of an evaluation, and the summed seconds of its metrics."""
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        summary = evaluate(
            clean=folder / "clean",
            noisy=folder / "noisy",
            enhanced=folder / "enhanced",
            out=out,
            jobs=jobs,
            quiet=True,
        )
        return time.perf_counter() - start, summary["seconds"]["metrics"]


def per_metric(source: Path, count: int = 20) -> Counter:
    """Seconds per metric over some pairs, in this process."""
    seconds: Counter = Counter()
    functions = {
        "WB-PESQ": metrics.wb_pesq, "SSNR": metrics.ssnr_db, "LLR": metrics.llr, "WSS": metrics.wss,
        "STOI": metrics.stoi_percent, "SI-SDR": lambda clean, noisy: metrics.si_sdr_db(clean, noisy),
    }  # fmt: skip
    for number, pair in enumerate(audio.list_pairs(source / "clean", source / "noisy")[:count]):
        clean, noisy = (audio.read_mono(path, metrics.SAMPLE_RATE_HZ) for path in (pair.clean, pair.noisy))
        for name, function in functions.items():
            start = time.perf_counter()
            function(clean, noisy)
            # The first pair pays for imports.
            seconds[name] += (time.perf_counter() - start) * (number > 0)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=824, help="size of the test set for the first ratio")
    parser.add_argument("--speedup-files", type=int, default=118, help="size for the comparison of 1 and 2 processes")
    parser.add_argument("--rounds", type=int, default=2, help="of that comparison; the best of each counts")
    args = parser.parse_args()
    if not os.environ.get("SAF_AUDIO"):
        print("SAF_AUDIO is not set: it names the folder of real recordings", file=sys.stderr)
        return 2
    source = Path(os.environ["SAF_AUDIO"]) / "voicebank_demand" / "test"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{cores} cores, load before {os.getloadavg()[0]:.2f}")
    passed = []

    def bar(name: str, value: float, holds: bool, wanted: str) -> None:
        passed.append(holds)
        print(f"{name}: {value:.2f} (bar: {wanted}) {'ok' if holds else 'MISSED'}", flush=True)

    seconds = per_metric(source)
    print("seconds per metric: " + ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()))
    ratio = (seconds["LLR"] + seconds["WSS"]) / seconds["WB-PESQ"]
    bar("LLR and WSS over WB-PESQ", ratio, ratio < 1, "below 1")
    with tempfile.TemporaryDirectory() as folder:
        small = repeated(source, Path(folder) / "small", args.speedup_files)
        walls = {jobs: [] for jobs in (1, 2)}
        for _ in range(args.rounds):
            for jobs in walls:
                walls[jobs].append(timed(small, jobs)[0])
        speedup = min(walls[1]) / min(walls[2])
        bar(f"2 processes against 1, {args.speedup_files} files", speedup, speedup >= 1.7, "at least 1.7 times faster")
        jobs = min(2, cores)
        wall, in_metrics = timed(repeated(source, Path(folder) / "large", args.files), jobs)
        ratio = wall / (in_metrics / jobs)
        print(f"{args.files} files with {jobs} processes: {wall:.1f} s, metrics {in_metrics:.1f} s in sum")
        bar("wall time over the metrics' share per process", ratio, ratio <= 1.25, "at most 1.25")
    print(f"load after {os.getloadavg()[0]:.2f}")
    return 0 if all(passed) else 1


# Processes that score files import this module again.
if __name__ == "__main__":
    sys.exit(main())
