"""Scoring enhanced speech against clean references: the command `eval`, and `evaluate` for programs."""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from saf_jax import audio, tables
from saf_jax.composite_measures import CompositeScale
from saf_jax.data import progress_bar
from saf_jax.errors import UserError
from saf_jax.evaluation_inputs import check_names, command_line, find_conditions, suspicions
from saf_jax.evaluation_sources import EnhancedByNetwork, EnhancedFolder, Track
from saf_jax.evaluation_summary import closing_lines, origin, summarise, trim_remark, write_summary
from saf_jax.files import make_folder
from saf_jax.metrics import check_packages
from saf_jax.results import PER_FILE, SUMMARY, FileResult, read_per_file, write_per_file
from saf_jax.scoring import Task, score_all
from saf_jax.worker_processes import usable_cores

_SAVE_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    judged = parser.add_mutually_exclusive_group()
    judged.add_argument("--weights", help="enhance with these (a shipped name, a training run, a file), then score")
    judged.add_argument("--enhanced", metavar="DIR", help="score these files, whoever made them; names as in --clean")
    parser.add_argument("--clean", metavar="DIR", help="the references")
    parser.add_argument("--noisy", metavar="DIR", help="the unprocessed recordings")
    parser.add_argument("--no-reference", metavar="DIR", help="instead: estimates for recordings without references")
    parser.add_argument("--out", metavar="DIR", help="folder for the results; called again, it is completed")
    parser.add_argument("--jobs", type=int, help="processes that score (default: all cores)")
    parser.add_argument(
        "--composite-scale",
        choices=get_args(CompositeScale),
        default="standard",
        help="'divided' computes CSIG, CBAK, COVL as some published tables do: WSS on samples / 32768",
    )
    parser.add_argument("--log-file", metavar="FILE", help="the data set's log (name, noise, SNR), for breakdowns")
    parser.add_argument(
        "--manifest", metavar="FILE", help="a manifest (file, noise, snr_db, kind, ...), for breakdowns"
    )
    parser.add_argument("--name", help="what the results are called in tables (default: the weights' or folder's name)")
    parser.add_argument("--no-audio", action="store_true", help="with --weights: do not keep the enhanced files")


def run(args: argparse.Namespace) -> int:
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    if args.no_reference is not None:
        from saf_jax import no_reference

        return no_reference.run(args)
    for name in ("clean", "noisy", "out"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is missing: eval needs --clean, --noisy and --out (or --no-reference)")
    summary = evaluate(
        clean=args.clean,
        noisy=args.noisy,
        out=args.out,
        enhanced=args.enhanced,
        weights=args.weights,
        jobs=args.jobs,
        composite_scale=args.composite_scale,
        log_file=args.log_file,
        manifest=args.manifest,
        name=args.name,
        keep_audio=not args.no_audio,
    )
    print(tables.format_text(tables.paper_table([summary])))
    print(tables.breakdown_text(summary["breakdowns"]))
    return 1 if summary["failed"] else 0


def evaluate(
    *,
    clean: str | os.PathLike,
    noisy: str | os.PathLike,
    out: str | os.PathLike,
    enhanced: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    jobs: int | None = None,
    composite_scale: CompositeScale = "standard",
    log_file: str | os.PathLike | None = None,
    manifest: str | os.PathLike | None = None,
    name: str | None = None,
    keep_audio: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Scores a test set and writes the results folder.

    Called again with the same folder, it scores only what is missing or has changed.

    Args:
      clean: folder of references.
      noisy: folder of the unprocessed recordings, file for file of the same names.
      out: results folder: per_file.csv, summary.json, the table in four formats, breakdown.csv, enhanced/.
      enhanced: folder of files to judge, or None to use `weights`.
      weights: shipped name, training run or weights file.
      jobs: processes that score; None takes all cores.
      composite_scale: see `saf_jax.metrics.score`.
      log_file: log of the data set (name, noise, SNR a line), for breakdowns.
      manifest: table with the column file and any of noise, snr_db, kind, speaker, for breakdowns.
      name: of the results in tables.
      keep_audio: keep what `weights` enhanced, in out/enhanced.
      quiet: no progress and no remarks on stderr.

    Returns:
      What summary.json holds: the means by name of metric, those of the noisy input under "noisy_...", "files",
      "failed" and so on (`saf_jax.evaluation_summary.summarise`); with `weights` "parameters" and "gmac_per_second".

    Raises:
      UserError: a folder is missing or does not fit; a single bad file is counted in "failed" instead.
    """
    given = {
        "clean": clean, "noisy": noisy, "enhanced": enhanced, "weights": weights, "out": out, "jobs": jobs,
        "composite_scale": composite_scale, "log_file": log_file, "manifest": manifest, "name": name,
        "no_audio": not keep_audio,
    }  # fmt: skip
    if (enhanced is None) == (weights is None):
        raise UserError("give either --weights or --enhanced: what should be scored?")
    check_packages()
    started = time.perf_counter()
    clean, noisy, out = Path(clean), Path(noisy), Path(out)
    jobs = jobs or usable_cores()
    pairs = audio.list_pairs(clean, noisy)
    check_names(path for pair in pairs for path in (pair.clean, pair.noisy))
    known, remarks = find_conditions(pairs, clean, noisy, log_file, manifest)
    remarks += suspicions(clean, noisy, pairs)
    source = EnhancedFolder(enhanced, pairs) if weights is None else EnhancedByNetwork(weights, pairs, out, keep_audio)
    remarks += source.remarks
    for remark in remarks:
        _say(f"warning: {remark}", quiet)
    make_folder(out)
    done = _done(out, source.tasks(pairs, composite_scale))
    # Results of this folder are complete only once the new summary is there.
    (out / SUMMARY).unlink(missing_ok=True)
    if done:
        _say(f"{len(done)} of {len(pairs)} files are scored already", quiet)

    def track(items: Iterable, total: int, what: str) -> Iterator:
        return iter(items) if quiet else progress_bar.track(items, what, total, from_items=1)

    failed, later = source.make([pair for pair in pairs if pair.name not in done], track)
    todo = [task for task in source.tasks(pairs, composite_scale) if task.file not in done and task.file not in failed]
    scoring_started = time.perf_counter()
    results = _score(todo, done | failed, jobs, out, known, track)
    scoring_seconds = time.perf_counter() - scoring_started
    source.finish()

    files = [results[pair.name] for pair in pairs]
    later += trim_remark(files)
    for remark in later:
        _say(remark, quiet)
    summary = {
        "name": name or source.name,
        **summarise(files, known),
        **source.facts,
        "composite_scale": composite_scale,
        "warnings": remarks + later,
        "folders": {
            "clean": str(clean.resolve()),
            "noisy": str(noisy.resolve()),
            "enhanced": str(source.folder.resolve()) if source.folder else None,
        },
        "seconds": {
            "audio": round(math.fsum(file.seconds for file in files), 3),
            "metrics": round(math.fsum(file.metric_seconds for file in files), 3),
            **source.seconds(),
            "scoring_wall": round(scoring_seconds, 3),
            "wall": round(time.perf_counter() - started, 3),
        },
        "scored_now": len(todo),
        "jobs": jobs,
        "command": command_line(given),
        **origin(),
    }
    write_summary(out, summary)
    for line in closing_lines(summary):
        _say(line, quiet)
    return summary


def _done(out: Path, tasks: Sequence[Task]) -> dict[str, FileResult]:
    """Results of an earlier call that still hold: same inputs, same settings. Failed files are tried again."""
    if not (out / PER_FILE).is_file():
        return {}
    stamps = {task.file: task.fingerprint for task in tasks}
    return {
        result.file: result
        for result in read_per_file(out)[0]
        if not result.failed and stamps.get(result.file) == result.fingerprint
    }


def _score(
    tasks: Sequence[Task],
    results: Mapping[str, FileResult],
    jobs: int,
    out: Path,
    known: Mapping[str, Mapping[str, str]],
    track: Track,
) -> dict[str, FileResult]:
    """Scores the tasks and adds them to the results; per_file.csv follows within two seconds, also when interrupted."""
    results = dict(results)
    saved = time.monotonic()
    try:
        for result in track(score_all(tasks, jobs), len(tasks), "scoring"):
            results[result.file] = result
            if time.monotonic() - saved > _SAVE_SECONDS:
                write_per_file(out, results.values(), known)
                saved = time.monotonic()
    finally:
        write_per_file(out, results.values(), known)
    return results


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr)
