"""Scoring enhanced speech against clean references: the command `eval`, and `evaluate` for programs."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from saf_jax import audio, tables
from saf_jax.composite_measures import CompositeScale
from saf_jax.errors import UserError
from saf_jax.evaluation_inputs import command_line, find_conditions, match_enhanced, suspicions
from saf_jax.evaluation_summary import closing_lines, origin, summarise, trim_remark, write_summary
from saf_jax.files import make_folder
from saf_jax.metrics import check_packages
from saf_jax.results import PER_FILE, SUMMARY, FileResult, read_per_file, write_per_file
from saf_jax.scoring import Task, fingerprint, score_all

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
    clean, noisy = Path(clean), Path(noisy)
    jobs = jobs or _cores()
    pairs = audio.list_pairs(clean, noisy)
    known, remarks = find_conditions(pairs, clean, noisy, log_file, manifest)
    remarks += suspicions(clean, noisy, pairs)
    if enhanced is not None:
        judged_folder = Path(enhanced)
        matched, more = match_enhanced(judged_folder, pairs)
        remarks += more
    for remark in remarks:
        _say(f"warning: {remark}", quiet)
    out = make_folder(out)

    # Results of this folder are complete only once the new summary is there.
    (out / SUMMARY).unlink(missing_ok=True)
    facts, seconds, failed = {}, {}, {}
    if weights is not None:
        judged_folder = out / ("enhanced" if keep_audio else ".enhanced")
        scorer = _NetworkScorer(os.fspath(weights), judged_folder, composite_scale, keep_audio)
        facts = scorer.facts
        tasks = scorer.tasks(pairs)
        done = _done(out, tasks)
        if keep_audio:
            # A file that was scored but is no longer there is made again.
            there = {task.file for task in tasks if task.enhanced.is_file()}
            done = {file: result for file, result in done.items() if file in there}
        failed, more = scorer.enhance([pair for pair in pairs if pair.name not in done], quiet)
        remarks += more
        seconds = scorer.seconds
    else:
        tasks = _tasks(pairs, matched, judged_folder, composite_scale)
        done = _done(out, tasks)
    if done:
        _say(f"{len(done)} of {len(pairs)} files are scored already", quiet)
    todo = [task for task in tasks if task.file not in done and task.file not in failed]
    scoring_started = time.perf_counter()
    results = _score(todo, done | failed, jobs, out, known, quiet)
    seconds |= {"scoring_wall": round(time.perf_counter() - scoring_started, 3)}
    if weights is not None and not keep_audio:
        shutil.rmtree(judged_folder, ignore_errors=True)

    files = [results[pair.name] for pair in pairs]
    for remark in trim_remark(files):
        remarks.append(remark)
        _say(remark, quiet)
    kept = enhanced is not None or keep_audio
    summary = {
        "name": name or (Path(weights).stem if weights is not None else judged_folder.resolve().name),
        **summarise(files, known),
        **facts,
        "composite_scale": composite_scale,
        "warnings": remarks,
        "folders": {
            "clean": str(clean.resolve()),
            "noisy": str(noisy.resolve()),
            "enhanced": str(judged_folder.resolve()) if kept else None,
        },
        "seconds": {
            "audio": round(sum(file.seconds for file in files), 3),
            "metrics": round(sum(file.metric_seconds for file in files), 3),
            "network": None,
            "network_audio": None,
            **seconds,
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


def _tasks(
    pairs: Sequence[audio.Pair],
    judged: Mapping[str, Path],
    folder: Path,
    composite_scale: CompositeScale,
    weights_hash: str | None = None,
) -> list[Task]:
    """What to score; the identity of a judged file is that of the weights that made it, if known."""
    tasks = []
    for pair in pairs:
        path = judged.get(pair.name)
        stamp = fingerprint(pair.clean, pair.noisy, weights_hash or path, composite_scale)
        tasks.append(Task(pair.name, pair.clean, pair.noisy, path, f"{folder / pair.name}", composite_scale, stamp))
    return tasks


class _NetworkScorer:
    """The part of an evaluation that only one with weights has."""

    def __init__(self, weights: str, folder: Path, composite_scale: CompositeScale, keep_audio: bool):
        from saf_jax import evaluation_network
        from saf_jax.config import config_to_dict
        from saf_jax.info import describe

        self._network = evaluation_network.load_network(weights)
        self._folder, self._scale, self._keep_audio = folder, composite_scale, keep_audio
        self._clock = evaluation_network.Clock()
        described = describe(self._network.config)
        self.facts = {
            "parameters": described["parameters"],
            "gmac_per_second": described["gmac_per_second"],
            "weights": weights,
            "weights_hash": self._network.fingerprint,
            "config": config_to_dict(self._network.config),
        }

    def tasks(self, pairs: Sequence[audio.Pair]) -> list[Task]:
        from saf_jax.evaluation_network import output_path

        judged = {pair.name: output_path(self._folder, pair.name) for pair in pairs}
        return _tasks(pairs, judged, self._folder, self._scale, self._network.fingerprint)

    def enhance(self, pairs: Sequence[audio.Pair], quiet: bool) -> tuple[dict[str, FileResult], list[str]]:
        """Enhances the pairs; gives the results of those that failed, and remarks."""
        from saf_jax.evaluation_network import enhance_pairs

        failed, clipped = {}, 0
        outcomes = enhance_pairs(self._network, pairs, self._folder, self._clock)
        for outcome in _progress(outcomes, len(pairs), "enhancing", quiet):
            clipped += outcome.clipped_samples > 0
            if outcome.failure:
                failed[outcome.file] = FileResult(outcome.file, {}, failures={"file": outcome.failure})
        remarks = [f"{clipped} enhanced files reach beyond full scale, which 16-bit files clip"] if clipped else []
        for remark in remarks:
            _say(remark, quiet)
        return failed, remarks

    @property
    def seconds(self) -> dict[str, float]:
        return {
            "network": round(self._clock.network_seconds, 3),
            "network_audio": round(self._clock.audio_seconds, 3),
        }


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
    quiet: bool,
) -> dict[str, FileResult]:
    """Scores the tasks and adds them to the results; per_file.csv follows within two seconds, also when interrupted."""
    results = dict(results)
    saved = time.monotonic()
    try:
        for result in _progress(score_all(tasks, jobs), len(tasks), "scoring", quiet):
            results[result.file] = result
            if time.monotonic() - saved > _SAVE_SECONDS:
                write_per_file(out, results.values(), known)
                saved = time.monotonic()
    finally:
        write_per_file(out, results.values(), known)
    return results


_T = TypeVar("_T")


def _progress(items: Iterable[_T], total: int, what: str, quiet: bool) -> Iterator[_T]:
    """Passes items on with a bar on stderr, if that is a terminal."""
    if quiet or not total or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield from bar.track(items, total=total)


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
