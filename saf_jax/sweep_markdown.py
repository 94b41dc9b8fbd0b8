"""The table of a sweep as markdown, for documents: the main figures, and where each row comes from."""

from collections.abc import Mapping, Sequence
from typing import Any

from saf_jax import tables
from saf_jax.sweep_results import COST_TITLES, LEGEND, cell_texts, cost_texts

SHOWN = ("wb_pesq", "stoi_percent", "ssnr_db", "si_sdr_db")
"""Metrics that documents show; the others stand in table.csv."""


def format_markdown(table: Mapping[str, Any]) -> str:
    """A table by `saf_jax.sweep_results.make_table` as markdown.

    Differences stand behind the means, with their mark and interval.
    """
    parts = [f"## {table['title']}", table["question"].strip()]
    for score_set in table["sets"]:
        name = score_set["name"]
        rows = [["", *COST_TITLES, *(tables.TITLES[metric] for metric in SHOWN)]]
        rows.append(["noisy", *[""] * 4, *(tables.number(m, table["noisy"][name].get(m)) for m in SHOWN)])
        for row in table["rows"]:
            cells = [_cell(metric, row["scores"][name][metric]) for metric in SHOWN]
            rows.append([row["name"], *cost_texts(row), *cells])
        parts.append(f"{name}, {score_set['files']} files; differences are to `{table['reference']}`:")
        parts.append(_lines(rows))
    parts.append(" ".join(LEGEND))
    runs = [["row", "seed", "run", "commit", "seconds"]]
    for row in table["rows"]:
        runs += [
            [row["name"], str(run["seed"]), f"`{run['folder']}`", str(run["commit"]), f"{run['seconds'] or 0:.0f}"]
            for run in row["runs"]
            if run["state"] == "done"
        ]
    parts.append(_lines(runs))
    notes = [f"note: {line}" for line in table["notes"]] + [f"failed: {line}" for line in table["failed"]]
    notes += [f"not there: {line}" for line in table["missing"]]
    if notes:
        parts.append("\n".join(f"- {line}" for line in notes))
    return "\n\n".join([*parts, f"    {table['command']}"]) + "\n"


def _cell(metric: str, cell: Mapping[str, Any]) -> str:
    texts = cell_texts(metric, cell)
    if not texts["difference"]:
        return texts["mean"]
    interval = f" ({texts['low']} to {texts['high']})" if texts["low"] else ""
    return f"{texts['mean']}; {texts['difference']}{interval}"


def _lines(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
