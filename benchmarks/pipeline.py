"""How many seconds of audio the data pipeline prepares per second, and how many a training step needs.

Prints one line per way of making examples (pairs, mixtures; in the process, with workers): audio-seconds per second of
wall clock and per second of CPU time, all threads and workers together, which is the rate of one core. The bars: 2,000
for pairs, 400 for mixtures. With --train it also trains a few steps and prints the share of a core that the data take.

    python benchmarks/pipeline.py [--seconds 5] [--workers 0,1] [--train tiny] [--markdown]

Mixtures are made from the real recordings that the environment variable SAF_AUDIO names, else from generated ones.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

# One thread in each of numpy's and scipy's helpers: what is measured is a core. Set before they are imported.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402

from saf_jax.config import Config, load_config  # noqa: E402
from saf_jax.data import noises  # noqa: E402
from saf_jax.data.pipeline import training_batches  # noqa: E402

BARS = {"pairs": 2000.0, "mixtures": 400.0}
CROP_SECONDS, BATCH = 3.0, 8


def make_recordings(folder: Path) -> None:
    """Writes ten minutes of generated pairs, noises and rooms."""
    import soundfile

    rng = np.random.default_rng(0)
    for kind in ("clean", "noisy", "noise", "rir"):
        (folder / kind).mkdir()
    for number in range(120):
        samples = int(16000 * rng.uniform(3, 7))
        clean = 0.05 * noises.babble(rng, [noises.music(rng, samples, 16000)], samples)
        noise = 0.02 * noises.hiss(rng, samples, 16000)
        for kind, signal in (("clean", clean), ("noisy", clean + noise)):
            soundfile.write(folder / kind / f"{number}.flac", signal.clip(-1, 1), 16000)
        if number < 20:
            soundfile.write(folder / "noise" / f"{number}.flac", noise, 16000)
            room = rng.standard_normal(12000) * np.exp(-np.arange(12000) / 2000)
            soundfile.write(folder / "rir" / f"{number}.flac", 0.1 * room, 16000)


def config_for(kind: str, folder: Path, workers: int) -> Config:
    """The paper's config on the recordings of this benchmark."""
    pools = {name: folder / name for name in ("clean", "noise", "rir")}
    if kind == "mixtures" and "SAF_AUDIO" in os.environ:
        pools = {name: Path(os.environ["SAF_AUDIO"]) / "train" / name for name in pools}
    names = {"train_clean": pools["clean"], "train_noise": pools["noise"], "train_rir": pools["rir"]}
    if kind == "pairs":
        names = {"train_clean": folder / "clean", "train_noisy": folder / "noisy"}
    settings = [f"data.{key}={value}" for key, value in names.items()]
    return load_config(
        "paper",
        [*settings, f"data.crop_seconds={CROP_SECONDS}", f"train.batch_size={BATCH}", f"data.workers={workers}"],
    )


def cpu_seconds() -> float:
    """CPU time of this process and of its children that still run or have ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = 0.0
    tick = os.sysconf("SC_CLK_TCK")
    for task in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = task.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            running += (int(fields[11]) + int(fields[12])) / tick
    return sum(usage.ru_utime + usage.ru_stime for usage in (own, ended)) + running


def measure(config: Config, seconds: float) -> tuple[float, float]:
    """Audio-seconds per second of wall clock and per second of CPU time, after a start that is not counted."""
    batches = training_batches(config)
    for _ in range(12):
        next(batches)
    count, start, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    batches.close()
    audio_seconds = count * BATCH * CROP_SECONDS
    return audio_seconds / wall, audio_seconds / cpu


def training_rate(name: str, folder: Path, steps: int) -> float:
    """Audio-seconds per second that a training on this machine's devices takes in, from its own log."""
    from saf_jax.training import train_and_evaluate

    settings = [f"data.{part}_{kind}={folder / kind}" for part in ("train", "valid") for kind in ("clean", "noisy")]
    config = load_config(name, [*settings, f"train.steps={steps}", f"train.validate_every={steps}"])
    train_and_evaluate(config, folder / "run", quiet=True)
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    # The first report holds the compilation.
    return max(line["audio_seconds_per_second"] for line in lines if line["event"] == "train")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each measurement")
    parser.add_argument("--workers", default="0", help="numbers of worker processes, such as 0,1,2")
    parser.add_argument("--train", default="", metavar="CONFIG", help="also train this config for a few steps")
    parser.add_argument("--steps", type=int, default=60, help="steps of --train")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    failed, per_core = False, {}
    if args.markdown:
        print("| examples | workers | audio-s/s | audio-s/s per core | bar |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_recordings(folder)
        for kind, bar in BARS.items():
            for workers in map(int, args.workers.split(",")):
                wall, core = measure(config_for(kind, folder, workers), args.seconds)
                per_core.setdefault(kind, core)
                failed |= core < bar
                if args.markdown:
                    print(f"| {kind} | {workers} | {wall:.0f} | {core:.0f} | {bar:.0f} |")
                else:
                    print(
                        f"{kind}, {workers} workers: {wall:.0f} audio-s/s, {core:.0f} per core; {core / bar:.2f} x bar"
                    )
        if args.train:
            rate = training_rate(args.train, folder, args.steps)
            shares = ", ".join(f"{kind} {100 * rate / core:.1f} %" for kind, core in per_core.items())
            print(f"training {args.train} here takes in {rate:.1f} audio-s/s; share of one core for that: {shares}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
