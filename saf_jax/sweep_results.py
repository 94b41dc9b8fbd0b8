"""The table of a sweep, from what its runs' folders hold: what is missing is said, what failed is in no mean."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saf_jax import tables
from saf_jax.errors import UserError
from saf_jax.files import write_text
from saf_jax.metrics import METRICS
from saf_jax.results import Results, finite, read_results, write_json
from saf_jax.statistics import FEWEST_FILES
from saf_jax.sweep_data import ScoreSet
from saf_jax.sweep_runs import RECORD_FILE, PlannedRun, read_json, scores_folder, state_of
from saf_jax.sweep_spec import Spec
from saf_jax.sweep_statistics import (
    BETTER,
    FEW_FILES,
    ONE_SEED,
    UNCLEAR,
    WITHIN_SEEDS,
    WORSE,
    deviation,
    paired_difference,
    pooled_spread,
    seed_means,
    verdict,
)

MARKS = {BETTER: "+", WORSE: "-", WITHIN_SEEDS: "~", UNCLEAR: "=", ONE_SEED: "?", FEW_FILES: "?"}
"""What stands behind a difference in tables."""

LEGEND = (
    "± standard deviation over seeds. Differences: per file, over the mean of the seeds; 95 % bootstrap interval over "
    "files.",
    "~ within the spread of the seeds (Student's t, 95 %, deviation pooled over all rows); = beyond it, but the "
    "interval over files holds 0; + better, - worse beyond both; ? unknown: too few seeds, or fewer than "
    f"{FEWEST_FILES} files.",
)

Table = dict[str, Any]


def make_table(
    spec: Spec, runs: Sequence[PlannedRun], sets: Sequence[ScoreSet], facts: Mapping[str, Any], workdir: Path
) -> Table:
    """Collects what is there.

    Args:
      spec: what is asked.
      runs: all runs, whether they are there or not.
      sets: what they are scored on, the main set first.
      facts: what else the table says about itself ("spec", "budget", ...).
      workdir: folder of the sweep, which paths are relative to.

    Returns:
      JSON values: "title", "question", "reference", the facts; "sets" with "name" and "files"; "rows", each with
      "name", "settings", "parameters", "gmac_per_second", "seconds_per_step", "runs", and "scores" by set and metric
      ("mean", "deviation", "seeds", "difference", "low", "high", "files", "margin", "verdict"); "noisy" by set and
      metric; "missing", "failed" and "notes": lines for people.
    """
    entries = {run: _entry(run, sets, workdir) for run in runs}
    complete = [run for run in runs if entries[run]["state"] == "done"]
    table: Table = {
        "title": spec.title,
        "question": spec.question,
        "reference": spec.reference,
        **facts,
        "sets": [{"name": item.name, "key": item.key, "files": 0} for item in sets],
        "rows": [],
        "noisy": {},
        "missing": [f"{run.name}: {entries[run]['state']}" for run in runs if entries[run]["kind"] == "missing"],
        "failed": [f"{run.name}: {entries[run]['reason']}" for run in runs if entries[run]["kind"] == "failed"],
        "notes": [],
    }
    for row in spec.rows:
        mine = [run for run in runs if run.row == row.name]
        records = [entries[run]["record"] for run in mine if run in complete]
        table["rows"].append(
            {
                "name": row.name,
                "settings": row.set,
                "noise": {"include": list(row.noise.include), "exclude": list(row.noise.exclude)},
                "parameters": records[0]["parameters"] if records else None,
                "gmac_per_second": records[0]["gmac_per_second"] if records else None,
                "seconds_per_step": _mean([record["seconds_per_step"] for record in records]),
                "seeds": len(mine),
                "runs": [{key: entries[run][key] for key in _SHOWN} for run in mine],
                "scores": {},
            }
        )
    for place, score_set in enumerate(sets):
        results = {run: read_results(scores_folder(run, score_set)) for run in complete}
        _add_scores(table, place, spec, results)
    table["notes"] += _notes([entries[run]["record"] for run in complete])
    return table


_SHOWN = ("seed", "state", "folder", "config", "overrides", "commit", "seconds", "devices", "cores")


def _entry(run: PlannedRun, sets: Sequence[ScoreSet], workdir: Path) -> dict[str, Any]:
    """What there is to say about a run."""
    state = state_of(run, sets)
    record = read_json(run.folder / RECORD_FILE) or {}
    kind = "done" if state.done else "failed" if state.reason else "missing"
    try:
        folder = run.folder.relative_to(workdir)
    except ValueError:
        folder = run.folder
    return {
        "seed": run.seed,
        "kind": kind,
        "state": str(state),
        "reason": state.reason,
        "folder": str(folder),
        "config": run.base,
        "overrides": run.command()[7:],
        "record": record,
        **{key: record.get(key) for key in ("commit", "seconds", "devices", "cores")},
    }


def _add_scores(table: Table, place: int, spec: Spec, results: Mapping[PlannedRun, Results]) -> None:
    """Fills in the scores on one set."""
    name = table["sets"][place]["name"]
    table["sets"][place]["files"] = max((len(item.files) for item in results.values()), default=0)
    table["noisy"][name] = {}
    for metric in METRICS:
        by_row = {
            row.name: [_values(item, metric) for run, item in results.items() if run.row == row.name]
            for row in spec.rows
        }
        spread = pooled_spread([seed_means(seeds) for seeds in by_row.values()])
        reference = by_row[spec.reference]
        for row in table["rows"]:
            seeds = by_row[row["name"]]
            means = seed_means(seeds)
            cell: dict[str, Any] = {"mean": _mean(means), "deviation": deviation(means), "seeds": len(means)}
            if row["name"] != spec.reference and means and seed_means(reference):
                difference = paired_difference(seeds, reference)
                margin = spread.margin(len(means), len(seed_means(reference)))
                cell |= {
                    "difference": difference.mean,
                    "low": difference.low,
                    "high": difference.high,
                    "files": difference.count,
                    "margin": margin,
                    "verdict": verdict(difference, margin),
                }
            row["scores"].setdefault(name, {})[metric] = cell
        if results:
            table["noisy"][name][metric] = _mean(
                list(_values(next(iter(results.values())), f"noisy_{metric}").values())
            )
    for run, item in results.items():
        for metric in METRICS:
            if len(values := _values(item, metric)) < len(item.files):
                table["notes"].append(
                    f"{run.name}: {metric} on {name}: {len(values)} of {len(item.files)} files have one"
                )


def _values(results: Results, metric: str) -> dict[str, float]:
    return {file.file: file.values[metric] for file in results.files if metric in file.values}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes rows hard to compare."""
    notes = []
    for key, what in (("commit", "commits"), ("devices", "devices"), ("cores", "numbers of cores")):
        found = sorted({str(record.get(key)) for record in records})
        if len(found) > 1:
            notes.append(f"the runs were made with several {what}: {', '.join(found)}")
    return notes


def write_table(table: Table, folder: Path) -> str:
    """Writes table.json, table.csv and table.txt; returns the text."""
    text = format_text(table)
    write_json(folder / "table.json", table)
    write_text(folder / "table.csv", format_csv(table))
    write_text(folder / "table.txt", text)
    return text


def cell_texts(metric: str, cell: Mapping[str, Any]) -> dict[str, str]:
    """A cell as text: "mean" with deviation, "difference" with its mark, "low", "high", "verdict"; empty if unknown."""
    number = tables.number
    texts = dict.fromkeys(("mean", "difference", "low", "high", "verdict"), "")
    if cell.get("mean") is None:
        return texts | {"mean": "-"}
    texts["mean"] = number(metric, cell["mean"])
    if (spread := finite(cell["deviation"])) is not None:
        texts["mean"] += f" ±{number(metric, spread)}"
    if "verdict" in cell:
        texts["difference"] = f"{signed(metric, cell['difference'])} {MARKS[cell['verdict']]}"
        if finite(cell["low"]) is not None:
            texts["low"], texts["high"] = (signed(metric, cell[end]) for end in ("low", "high"))
        texts["verdict"] = cell["verdict"]
    return texts


def signed(metric: str, value: float) -> str:
    """A difference as text, with its sign."""
    text = tables.number(metric, value)
    return text if text.startswith("-") else f"+{text}"


def cost_texts(row: Mapping[str, Any]) -> list[str]:
    """Parameters, cost, speed and seeds of a row as text."""
    parameters, cost, seconds = (row[key] for key in ("parameters", "gmac_per_second", "seconds_per_step"))
    done = sum(run["state"] == "done" for run in row["runs"])
    return [
        "-" if parameters is None else f"{parameters:,}",
        "-" if cost is None else f"{cost:.3g}",
        "-" if seconds is None else f"{seconds:.3g}",
        f"{done}" if done == row["seeds"] else f"{done} of {row['seeds']}",
    ]


COST_TITLES = ("parameters", "GMAC/s", "s/step", "seeds")


def format_text(table: Table) -> str:
    """The tables as aligned text, one per set."""
    parts = ["\n".join(line for line in (table["title"], table["question"]) if line)]
    for score_set in table["sets"]:
        name = score_set["name"]
        lines: list[list[str]] = [["", *COST_TITLES, *tables.TITLES.values()]]
        noisy = (tables.number(metric, table["noisy"][name].get(metric)) for metric in METRICS)
        lines.append(["noisy", "", "", "", "", *noisy])
        for row in table["rows"]:
            cells = [cell_texts(metric, row["scores"][name][metric]) for metric in METRICS]
            lines.append([row["name"], *cost_texts(row), *(cell["mean"] for cell in cells)])
            if any(cell["difference"] for cell in cells):
                for heading, key in ((f"  - {table['reference']}", "difference"), ("  from", "low"), ("  to", "high")):
                    lines.append([heading, "", "", "", "", *(cell[key] for cell in cells)])
        parts.append("\n".join([f"{name}: {score_set['files']} files", *tables.align(lines)]))
    closing = [*LEGEND, *(f"note: {line}" for line in table["notes"])]
    closing += [f"failed: {line}" for line in table["failed"]] + [f"not there: {line}" for line in table["missing"]]
    return "\n\n".join([*parts, "\n".join(closing)]) + "\n"


_CELL_KEYS = ("mean", "deviation", "seeds", "difference", "low", "high", "margin", "verdict")


def format_csv(table: Table) -> str:
    """One line per row, all sets and metrics side by side, as "set.metric.mean"."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [item["name"] for item in table["sets"]]
    columns = [(name, metric, key) for name in names for metric in METRICS for key in _CELL_KEYS]
    costs = ("parameters", "gmac_per_second", "seconds_per_step")
    writer.writerow(["row", "state", *costs, *(".".join(column) for column in columns)])
    for row in table["rows"]:
        done = sum(run["state"] == "done" for run in row["runs"])
        cells = [finite(row["scores"][name][metric].get(key)) for name, metric, key in columns]
        numbers = [row[key] for key in costs]
        state = f"{done} of {row['seeds']} runs"
        writer.writerow([row["name"], state, *("" if value is None else value for value in (*numbers, *cells))])
    return text.getvalue()


def read_table(folder: Path) -> Table:
    """The table that was written into a folder.

    Raises:
      UserError: there is none.
    """
    table = read_json(folder / "table.json")
    if table is None:
        raise UserError(f"{folder}: holds no table of a sweep (table.json): run saf-jax sweep first")
    return table
