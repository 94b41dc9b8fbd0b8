"""The page of a sweep: tables, what a metric costs, curves, and where each row comes from."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saf_jax import report_figures, tables
from saf_jax.errors import UserError
from saf_jax.files import write_text
from saf_jax.metrics import METRICS
from saf_jax.report_page import check_packages, render
from saf_jax.results import finite
from saf_jax.run_log import Curve, Entry, curve, read_log, thinned
from saf_jax.sweep_results import COST_TITLES, LEGEND, Table, cell_texts, cost_texts

FILE_NAME = "index.html"
_DRAWN = ("wb_pesq", "si_sdr_db")
_COSTS = {"parameters": "parameters", "gmac_per_second": "GMAC per second of audio"}
_POINTS = 200
_MOST_COLOURS = 10
# Their numbers have no common divisor with that of the colours: no two of 70 rows are drawn alike.
_MARKERS, _LINES = "os^vDPX", ("-", "--", ":")
_LEGEND_COLUMNS, _LONGEST_LABEL = 2, 36


def write_page(table: Table, workdir: Path, folder: Path) -> Path:
    """Writes the page of a table.

    Args:
      table: by `saf_jax.sweep_results.make_table`.
      workdir: folder of the sweep, which the runs' folders are relative to.
      folder: where the page goes.

    Raises:
      UserError: a missing package, or the page cannot be written.
    """
    check_packages()
    path = folder / FILE_NAME
    write_text(path, render("sweep.html.j2", _content(table, workdir)))
    return path


def _content(table: Table, workdir: Path) -> dict[str, Any]:
    """Everything the template shows."""
    done, expected = (sum(count) for count in zip(*((_done(row), row["seeds"]) for row in table["rows"])))
    return {
        "table": table,
        "colours": report_figures.COLOURS,
        "progress": f"{done} of {expected} runs",
        "columns": [*COST_TITLES, *tables.TITLES.values()],
        "sets": [_set_table(table, item) for item in table["sets"]],
        "overview": _overview(table) if len(table["sets"]) > 1 else [],
        "plots": _cost_plots(table),
        "curves": _curve_plots(table, workdir),
        "legend": LEGEND,
        "runs": [{**run, "row": row["name"], "command": _command(run)} for row in table["rows"] for run in row["runs"]],
    }


def _done(row: Mapping[str, Any]) -> int:
    return sum(run["state"] == "done" for run in row["runs"])


def _command(run: Mapping[str, Any]) -> str:
    words = ["saf-jax", "train", "--config", run["config"], "--workdir", run["folder"], "--set", *run["overrides"]]
    return shlex.join(words)


def _set_table(table: Table, score_set: Mapping[str, Any]) -> dict[str, Any]:
    name = score_set["name"]
    return {
        **score_set,
        "noisy": [tables.number(metric, table["noisy"][name].get(metric)) for metric in METRICS],
        "rows": [
            {
                "name": row["name"],
                "reference": row["name"] == table["reference"],
                "costs": cost_texts(row),
                "cells": [cell_texts(metric, row["scores"][name][metric]) for metric in METRICS],
            }
            for row in table["rows"]
        ],
    }


def _overview(table: Table) -> list[dict[str, Any]]:
    """One table per drawn metric: rows against sets."""
    names = [item["name"] for item in table["sets"]]
    return [
        {
            "title": tables.TITLES[metric],
            "sets": names,
            "noisy": [tables.number(metric, table["noisy"][name].get(metric)) for name in names],
            "rows": [
                {"name": row["name"], "cells": [cell_texts(metric, row["scores"][name][metric]) for name in names]}
                for row in table["rows"]
            ],
        }
        for metric in _DRAWN
    ]


def _cost_plots(table: Table) -> list[tuple[str, str]]:
    """Metrics of the main set over what the networks cost."""
    name = table["sets"][0]["name"]
    plots = []
    for metric in _DRAWN:
        for key, cost in _COSTS.items():
            points = [
                (row["name"], row[key], row["scores"][name][metric]["mean"], row["scores"][name][metric]["deviation"])
                for row in table["rows"]
                if row[key] is not None and row["scores"][name][metric]["mean"] is not None
            ]
            if points:
                title = f"{tables.TITLES[metric]} over {cost}"
                plots.append((title, _scatter(points, cost, tables.TITLES[metric])))
    return plots


def _scatter(points: Sequence[tuple[str, float, float, float | None]], x_title: str, y_title: str) -> str:
    """Named points with error bars."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_size(len(points)), layout="constrained")
    axes = figure.subplots()
    for place, (name, x, y, spread) in enumerate(points):
        style = {"color": _colour(place), "fmt": _MARKERS[place % len(_MARKERS)], "label": _label(name)}
        axes.errorbar([x], [y], yerr=finite(spread) or 0.0, markersize=5, capsize=3, **style)
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    _finish(figure, axes)
    return report_figures.picture(figure, "png")


def _curve_plots(table: Table, workdir: Path) -> list[tuple[str, str]]:
    """Training and validation loss of all rows, means over seeds."""
    logs = {row["name"]: found for row in table["rows"] if (found := _logs(row, workdir))}
    plots = []
    for title, event, key in (("training loss", "train", "loss"), ("validation loss", "valid", "valid_loss")):
        curves = {
            name: points
            for name, entries in logs.items()
            if len((points := _mean_curve([curve(log, event, key) for log in entries])).steps)
        }
        if curves:
            plots.append((title, _lines(curves)))
    return plots


def _logs(row: Mapping[str, Any], workdir: Path) -> list[list[Entry]]:
    """Logs of the runs that are done; without any, the longest: one that has just begun would cut the mean short."""
    found = {True: [], False: []}
    for run in row["runs"]:
        # Not begun, or elsewhere: passed over.
        with contextlib.suppress(UserError):
            found[run["state"] == "done"].append(read_log(workdir / run["folder"]))
    return found[True] or sorted(found[False], key=lambda log: log[-1].get("step", -1) if log else -1)[-1:]


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over the steps that all of them have."""
    steps = sorted(set(curves[0].steps.tolist()).intersection(*(points.steps.tolist() for points in curves[1:])))
    values = [dict(zip(points.steps.tolist(), points.values.tolist())) for points in curves]
    means = np.array([np.mean([of[step] for of in values]) for step in steps], float)
    return thinned(Curve(np.array(steps, int), means), _POINTS)


def _lines(curves: Mapping[str, Curve]) -> str:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_size(len(curves)), layout="constrained")
    axes = figure.subplots()
    for place, (name, points) in enumerate(curves.items()):
        axes.plot(
            points.steps,
            points.values,
            color=_colour(place),
            label=_label(name),
            linewidth=1.1,
            linestyle=_LINES[place % len(_LINES)],
            # One in ten of a long curve: the marks tell rows apart where colours do not.
            marker=_MARKERS[place % len(_MARKERS)],
            markevery=max(1, len(points.steps) // 10),
            markersize=3,
        )
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _finish(figure, axes)
    return report_figures.picture(figure, "png")


def _size(entries: int) -> tuple[float, float]:
    """Inches of a picture with so many entries in the legend below it."""
    return 4.6, 2.9 + 0.17 * -(-entries // _LEGEND_COLUMNS)


def _finish(figure: Any, axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the axes, where it covers nothing however many rows there are.
    figure.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=7)


def _label(name: str) -> str:
    """A name for a legend: no formula, not one of those that matplotlib hides, and no wider than its column."""
    name = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"
    return " " * name.startswith("_") + name.replace("$", r"\$")


def _colour(place: int) -> str:
    return f"C{place % _MOST_COLOURS}"
