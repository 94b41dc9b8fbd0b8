"""The command `saf-jax enhance`: recordings in, recordings of the same format out."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from saf_jax import audio
from saf_jax.audio_blocks import AudioFormat
from saf_jax.enhance_jobs import Job, plan_in_place, plan_jobs
from saf_jax.enhance_pipes import RAW_FORMATS, check_stdout, copy_to_stdout, raw_format, spool_stdin
from saf_jax.errors import UserError
from saf_jax.recomposition import Treatment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="audio files, folders of them, quoted patterns such as 'in/**/*.wav', or -",
    )
    parser.add_argument(
        "-o", "--out", help="output folder, an output file for a single input, or - for stdout (the default for stdin)"
    )
    parser.add_argument(
        "--weights", help="a shipped name, a training run's folder or one of its checkpoints, or a weights file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--in-place", action="store_true", help="replace the inputs; each is kept as NAME.bak")
    parser.add_argument(
        "--mix", type=float, default=1.0, metavar="0..1", help="share of the enhanced signal; the rest is the recording"
    )
    parser.add_argument(
        "--max-attenuation-db", type=float, metavar="DB", help="attenuate no part by more than this (default: no limit)"
    )
    parser.add_argument(
        "--high-band",
        choices=("keep", "drop"),
        default="keep",
        help="the band above half the network's rate: keep it, with the gain of the band below (default), or drop it",
    )
    pipes = parser.add_argument_group("pipes")
    pipes.add_argument("--stream", action="store_true", help="work while samples come; needs a causal network")
    pipes.add_argument("--raw-rate", type=int, metavar="HZ", help="stdin has no header: its samples a second")
    pipes.add_argument("--raw-format", choices=RAW_FORMATS, help="of samples without header (default: s16)")
    pipes.add_argument("--raw-channels", type=int, metavar="N", help="of samples without header (default: 1)")


def run(args: argparse.Namespace) -> int:
    treatment = treatment_of(args)
    raw = raw_format(args.raw_rate, args.raw_format, args.raw_channels)
    if raw is not None and args.inputs != ["-"]:
        raise UserError("--raw-rate: goes with the input - alone; files need a header")
    if args.stream:
        from saf_jax.stream_command import run_stream

        return run_stream(args)
    if "-" in args.inputs or args.out == "-":
        return _run_pipe(args, treatment, raw)
    if args.in_place:
        if args.out is not None:
            raise UserError("--in-place and -o: use one of them")
        if args.overwrite:
            raise UserError("--in-place: keeps a backup and replaces the file: leave --overwrite out")
        jobs = plan_in_place(args.inputs)
    else:
        if args.out is None:
            raise UserError("no output named: use -o FOLDER, or --in-place")
        jobs = plan_jobs(args.inputs, Path(args.out))
        if not args.overwrite:
            jobs = keep_existing(jobs)
    return _enhance(args.weights, jobs, treatment) if jobs else 0


def treatment_of(args: argparse.Namespace) -> Treatment:
    """What the options say; raises `UserError` for values that make no sense."""
    if not 0 <= args.mix <= 1:
        raise UserError(f"--mix {args.mix:g}: must lie between 0 (the recording) and 1 (enhanced)")
    limit = args.max_attenuation_db
    if limit is not None and not limit >= 0:
        raise UserError(f"--max-attenuation-db {limit:g}: must be 0 or more")
    return Treatment(args.mix, limit, args.high_band)


def keep_existing(jobs: list[Job]) -> list[Job]:
    """The jobs whose outputs do not exist; says which are kept.

    Raises:
      UserError: the only output exists.
    """
    existing = [job for job in jobs if job.target.exists()]
    if existing and len(jobs) == 1:
        raise UserError(f"{existing[0].target}: exists already: use --overwrite or another output")
    for job in existing:
        print(f"{job.target}: exists already, kept (--overwrite replaces it)", file=sys.stderr)
    return [job for job in jobs if job not in existing]


def _run_pipe(args: argparse.Namespace, treatment: Treatment, raw: AudioFormat | None) -> int:
    """Stdin to a file or stdout, or a file to stdout; lines go to stderr."""
    if len(args.inputs) > 1 or args.in_place:
        raise UserError("-: stdin and stdout take one recording, and no --in-place")
    to_stdout = args.out in (None, "-")
    if to_stdout:
        check_stdout()
    elif not audio.names_audio(Path(args.out)):
        raise UserError(f"{args.out}: what comes on stdin needs a file to go to: name one that ends in .wav or .flac")
    elif Path(args.out).exists() and not args.overwrite:
        raise UserError(f"{args.out}: exists already: use --overwrite or another output")
    with tempfile.TemporaryDirectory(prefix="saf_jax.") as name:
        folder = Path(name)
        target = folder / ("out.wav" if raw is None else "out.raw") if to_stdout else Path(args.out)
        audio.containers_of(target)
        if args.inputs == ["-"]:
            job = Job(spool_stdin(folder, raw), target)
        else:
            planned = plan_jobs(args.inputs, folder)
            if len(planned) > 1:
                raise UserError(f"-: stdout takes one recording, {args.inputs[0]} holds {len(planned)}: use -o FOLDER")
            job = Job(planned[0].recording, target)
        _enhance(args.weights, [job], treatment, "stdout" if to_stdout else "")
        if to_stdout:
            copy_to_stdout(target)
        return 0


def _enhance(weights: str | None, jobs: list[Job], treatment: Treatment, pipe: str = "") -> int:
    """Enhances all jobs and says what became of them: on stderr, under the name `pipe`, if stdout takes the audio."""
    from saf_jax.enhance_files import enhance_files
    from saf_jax.enhance_progress import EnhanceProgress
    from saf_jax.enhancement import Enhancer
    from saf_jax.jit_cache import use_compilation_cache
    from saf_jax.pretrained import load_weights

    use_compilation_cache()
    enhancer = Enhancer(*load_weights(weights))
    started, seconds, failed = time.monotonic(), 0.0, 0
    said = sys.stderr if pipe else sys.stdout
    with EnhanceProgress(jobs) as progress:
        for outcome in enhance_files(enhancer, jobs, treatment, progress.advance):
            if outcome.error is not None:
                if len(jobs) == 1:
                    raise outcome.error
                failed += 1
                progress.skip(outcome.job)
                # One line whatever the message holds: names of files may contain line breaks.
                print("error: " + " ".join(str(outcome.error).splitlines()), file=sys.stderr)
                continue
            seconds += outcome.seconds
            speed = f", {_speed(seconds, started)}" if len(jobs) == 1 else ""
            notes = f" ({'; '.join(outcome.notes)})" if outcome.notes else ""
            print(f"{pipe or outcome.job.target}: {outcome.seconds:.1f} s{speed}{notes}", file=said)
    if len(jobs) > 1:
        print(f"{len(jobs) - failed} files, {seconds:.1f} s, {_speed(seconds, started)}", file=said)
    if failed:
        print(f"{failed} of {len(jobs)} files failed", file=sys.stderr)
    return 1 if failed else 0


def _speed(seconds: float, started: float) -> str:
    return f"{seconds / max(time.monotonic() - started, 1e-9):.1f} times real time"
