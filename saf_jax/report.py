"""`saf-jax report FOLDER`: one self-contained HTML page about an evaluation or a run, to look at and listen to."""

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saf_jax import audio, tables
from saf_jax.conditions import title
from saf_jax.errors import UserError
from saf_jax.files import write_text
from saf_jax.metrics import METRICS
from saf_jax.report_page import FILE_NAME, check_packages, render, sides
from saf_jax.results import ENHANCED, SUMMARY, FileResult, Results, read_results
from saf_jax.run_report import is_run, write_run_report

_SIDES = ("noisy", "enhanced", "clean")
_NEEDED = ("composite_scale", "folders", "seconds", "command", "commit", "versions", "intervals", "warnings")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what eval wrote (--out), or the --workdir of a training")
    parser.add_argument("-o", "--out", help=f"the page (default: FOLDER/{FILE_NAME})")
    parser.add_argument(
        "--files", type=int, default=5, metavar="N", help="of an evaluation: how many best, median and worst files"
    )


def run(args: argparse.Namespace) -> int:
    if args.files < 0:
        raise UserError(f"--files {args.files}: must not be negative")
    if is_run(args.folder):
        path = write_run_report(args.folder, args.out)
    else:
        path = write_report(args.folder, args.out, files=args.files)
    print(path)
    return 0


def write_report(folder: str | Path, out: str | Path | None = None, *, files: int = 5) -> Path:
    """Writes the page of a results folder.

    Args:
      folder: what `saf_jax.evaluation.evaluate` wrote.
      out: the page; None puts it into the folder.
      files: how many of the best, of the median and of the worst files are shown.

    Returns:
      Path of the page.

    Raises:
      UserError: no finished results there, a missing package, or the page cannot be written.
    """
    check_packages()
    results = read_results(folder)
    if missing := [key for key in _NEEDED if key not in results.summary]:
        raise UserError(f"{results.folder / SUMMARY}: holds no {missing[0]!r}: evaluate again with this version")
    path = Path(out) if out is not None else results.folder / FILE_NAME
    write_text(path, render("report.html.j2", _content(results, files)))
    return path


def _content(results: Results, count: int) -> dict[str, Any]:
    """Everything the template shows."""
    from saf_jax import report_figures

    summary = results.summary
    scored = [file for file in results.files if not file.failed]
    rows = tables.paper_table([summary])
    columns = tables.filled_columns(rows)
    boxes = []
    for metric, heading in tables.TITLES.items():
        sides = [[file.values[name] for file in scored if name in file.values] for name in (f"noisy_{metric}", metric)]
        if any(sides):
            boxes.append((heading, report_figures.box_plot(*sides)))
    return {
        "name": results.name,
        "summary": summary,
        "colours": report_figures.COLOURS,
        "headline": _headline(summary),
        "columns": columns.values(),
        "rows": [
            {
                "name": row.name,
                "kind": row.kind,
                "source": row.source,
                "cells": [
                    {"text": tables.cell_text(row, column), "interval": row.intervals.get(column)} for column in columns
                ],
            }
            for row in rows
        ],
        "notes": tables.notes(rows),
        "boxes": boxes,
        "breakdowns": [
            {"title": title(kind), "columns": list(tables.TITLES.values()), "groups": [_group(g) for g in groups]}
            for kind, groups in summary["breakdowns"].items()
        ],
        "examples": _examples(results, count),
        "facts": _facts(summary),
        "config": json.dumps(summary["config"], indent=2) if summary.get("config") else None,
    }


def _headline(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The metrics as large figures, each with that of the noisy input."""
    return [
        {
            "title": heading,
            "value": tables.number(metric, summary.get(metric)),
            "noisy": tables.number(metric, summary.get(f"noisy_{metric}")),
        }
        for metric, heading in tables.TITLES.items()
    ]


def _group(group: dict[str, Any]) -> dict[str, Any]:
    cells = [(tables.number(m, group[f"noisy_{m}"]), tables.number(m, group[m])) for m in METRICS]
    return {"name": group["group"], "files": group["files"], "cells": cells}


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the results come from, as lines."""
    seconds = summary["seconds"]
    facts = [
        ("command", summary["command"]),
        ("commit", summary["commit"] or "installed package"),
        ("versions", ", ".join(f"{name} {version}" for name, version in summary["versions"].items())),
        ("composites", f"{summary['composite_scale']} scale"),
        *((f"{side} files", folder or "not kept") for side, folder in summary["folders"].items()),
        ("scoring", f"{seconds['metrics']:.1f} s of metrics for {seconds['audio']:.1f} s of audio"),
    ]
    if summary.get("parameters") is not None:
        cost = f"{summary['parameters']:,} parameters, {summary['gmac_per_second']:g} GMAC per second of audio"
        facts += [("weights", f"{summary['weights']} ({summary['weights_hash']})"), ("network", cost)]
    if seconds["network_audio"]:
        facts.append(("network time", f"{seconds['network']:.1f} s for {seconds['network_audio']:.1f} s of audio"))
    return facts


def choose(files: Sequence[FileResult], count: int) -> dict[str, list[FileResult]]:
    """The files with the largest, median and smallest gain in WB-PESQ over the noisy input; none twice.

    Args:
      files: scored files.
      count: how many of each; fewer where there are not enough files.
    """
    ranked = sorted(
        (file for file in files if {"wb_pesq", "noisy_wb_pesq"} <= file.values.keys()),
        key=lambda file: file.values["wb_pesq"] - file.values["noisy_wb_pesq"],
        reverse=True,
    )
    best = ranked[: min(count, (len(ranked) + 1) // 2)]
    worst = ranked[len(best) :][-count:] if count else []
    middle = [file for file in ranked if file not in best and file not in worst]
    start = max(0, (len(middle) - count) // 2)
    return {"best": best, "median": middle[start : start + count], "worst": worst[::-1]}


def _examples(results: Results, count: int) -> list[dict[str, Any]]:
    """The chosen files with pictures and sound."""
    found = {}
    folders = dict(results.summary["folders"])
    if folders.get("enhanced") and results.summary.get("weights") and (results.folder / ENHANCED).is_dir():
        # The results' own, wherever the folder has been moved or copied to.
        folders["enhanced"] = str(results.folder / ENHANCED)
    for side in _SIDES:
        folder, paths = folders.get(side), []
        # A folder that is gone, or whose recordings are, is said on the page.
        with contextlib.suppress(UserError):
            paths = audio.list_audio(folder) if folder else []
        found[side] = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    chosen = choose([file for file in results.files if not file.failed], count)
    return [
        {
            "title": heading,
            "files": [
                {
                    "name": file.file,
                    "conditions": ", ".join(
                        f"{title(kind)} {value}" for kind, value in results.conditions.get(file.file, {}).items()
                    ),
                    "scores": [
                        {
                            "title": label,
                            "noisy": tables.number(metric, file.values.get(f"noisy_{metric}")),
                            "value": tables.number(metric, file.values.get(metric)),
                        }
                        for metric, label in tables.TITLES.items()
                    ],
                    "sides": sides({side: found[side].get(file.file) for side in _SIDES}),
                }
                for file in files
            ],
        }
        for heading, files in chosen.items()
        if files
    ]
