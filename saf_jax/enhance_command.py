"""The command `saf-jax enhance`: recordings in, recordings of the same format out."""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saf_jax import audio
from saf_jax.errors import UserError


class Job(NamedTuple):
    """One recording and where its enhanced version goes."""

    source: Path
    target: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="audio files, or folders of them")
    parser.add_argument("-o", "--out", required=True, help="output folder, or an output file for a single input file")
    parser.add_argument("--weights", help="a shipped name, a training run's folder, or a weights file")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")


def run(args: argparse.Namespace) -> int:
    jobs = plan_jobs([Path(name) for name in args.inputs], Path(args.out))
    if not args.overwrite:
        existing = [job for job in jobs if job.target.exists()]
        if existing and len(existing) == len(jobs):
            raise UserError(f"{existing[0].target}: exists already: use --overwrite or another output")
        for job in existing:
            print(f"{job.target}: exists already, kept (--overwrite replaces it)", file=sys.stderr)
        jobs = [job for job in jobs if job not in existing]

    from saf_jax.enhancement import Enhancer
    from saf_jax.jit_cache import use_compilation_cache
    from saf_jax.pretrained import load_weights

    use_compilation_cache()
    enhancer = Enhancer(*load_weights(args.weights))
    failed = 0
    for job in jobs:
        try:
            print(enhance_file(enhancer, job))
        except UserError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            # One line whatever the message holds: names of files may contain line breaks.
            print("error: " + " ".join(str(error).splitlines()), file=sys.stderr)
    if failed:
        print(f"{failed} of {len(jobs)} files failed", file=sys.stderr)
    return 1 if failed else 0


def plan_jobs(inputs: list[Path], out: Path) -> list[Job]:
    """Names the output of every input; folders keep their tree.

    Raises:
      UserError: a missing input, two inputs with one output, or an output that would replace its own input.
    """
    if len(inputs) == 1 and not inputs[0].is_dir() and out.suffix.lower() in audio.SUFFIXES and not out.is_dir():
        jobs = [Job(inputs[0], out)]
    else:
        jobs = []
        for source in inputs:
            if source.is_dir():
                jobs += [Job(path, out / path.relative_to(source)) for path in audio.list_audio(source)]
            else:
                jobs.append(Job(source, out / source.name))
    targets: dict[Path, Path] = {}
    for job in jobs:
        if not job.source.exists():
            raise UserError(f"{job.source}: no such file or folder: check the path")
        if job.target.resolve() == job.source.resolve():
            raise UserError(f"{job.source}: the output would replace the input: choose another output folder")
        if job.target in targets:
            both = f"{job.source} and {targets[job.target]}"
            raise UserError(f"{both}: both would be written to {job.target}: rename one")
        targets[job.target] = job.source
    return jobs


def enhance_file(enhancer, job: Job) -> str:
    """Enhances one file; returns a line that says what was done and what was out of the ordinary.

    Every channel is enhanced on its own, all with one shared level, so that their balance stays. Rate, channels, length
    and sample format stay; what lies above half the network's rate is lost, and said so.
    """
    started = time.monotonic()
    recording = audio.read(job.source)
    samples, rate = recording.samples, recording.sample_rate_hz
    inner = enhancer.config.stft.sample_rate_hz
    notes = []
    if rate != inner:
        lost = f", above {inner // 2} Hz is lost" if rate > inner else ""
        notes.append(f"{rate} Hz resampled to {inner} Hz and back{lost}")
    if samples.shape[1] > 1:
        notes.append(f"{samples.shape[1]} channels")
    if not samples.any():
        enhanced = samples
        notes.append("silent, copied")
    else:
        energy = np.sqrt(np.mean(samples.astype(np.float64) ** 2, axis=1))
        level = enhancer.level(energy, rate)
        done: dict[bytes, np.ndarray] = {}
        columns = []
        for channel in samples.T:
            # Identical channels (mono stored as stereo) are worked on once.
            key = channel.tobytes()
            if key not in done:
                done[key] = enhancer(channel, rate, level)
            columns.append(done[key])
        enhanced = np.stack(columns, axis=1)
    clipped = audio.write(job.target, recording._replace(samples=enhanced))
    if clipped:
        notes.append(f"{clipped} samples clipped at full scale")
    seconds = len(samples) / rate
    speed = seconds / max(time.monotonic() - started, 1e-9)
    return f"{job.target}: {seconds:.1f} s, {speed:.1f} times real time" + (f" ({'; '.join(notes)})" if notes else "")
