"""The paper's table: published rows, the noisy input, and the evaluated results; as text, CSV, Markdown and LaTeX."""

import csv
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from saf_jax.conditions import title
from saf_jax.metrics import METRICS

TITLES = {
    "wb_pesq": "WB-PESQ",
    "csig": "CSIG",
    "cbak": "CBAK",
    "covl": "COVL",
    "ssnr_db": "SSNR (dB)",
    "stoi_percent": "STOI (%)",
    "si_sdr_db": "SI-SDR (dB)",
}
"""Headings of the metrics."""

_COST_TITLES = {"parameters_m": "Params (M)", "gmac_per_second": "GMAC/s"}
_COMPOSITES = ("csig", "cbak", "covl")
_MARK = "†"
_LATEX = str.maketrans(
    {character: "\\" + character for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", _MARK: r"$^\dagger$"}
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table, its cells as text.

    Attributes:
      name: of the system.
      kind: "published" or "measured".
      cells: by name of column; columns without a value are left out.
      intervals: by name of metric, the ends of the 95 % interval; for measured rows.
      divided: True if CSIG, CBAK and COVL come from WSS on samples / 32768.
      files: number of files that a measured row is a mean of.
      source: of a published row.
    """

    name: str
    kind: str
    cells: Mapping[str, str]
    intervals: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    divided: bool = False
    files: int | None = None
    source: str = ""


@functools.cache
def field_results() -> tuple[Row, ...]:
    """Published results on the official test set of Voice Bank + DEMAND, with sources, figures as printed there."""
    import yaml

    text = resources.files("saf_jax").joinpath("field_results.yaml").read_text(encoding="utf-8")
    # The base loader leaves figures as text: 4.00 stays 4.00.
    entries = yaml.load(text, Loader=yaml.BaseLoader)
    rows = []
    for entry in entries:
        cells = {name: entry[name] for name in (*_COST_TITLES, *METRICS) if name in entry}
        divided = entry.get("composite_scale") == "divided"
        rows.append(Row(entry["name"], "published", cells, divided=divided, source=entry["source"]))
    return tuple(rows)


def number(metric: str, value: float | None) -> str:
    """A metric's value as printed: three decimals for opinion scores, two for dB and percent; "-" without a value."""
    if value is None or value != value:
        return "-"
    return f"{value:.2f}" if metric.endswith(("_db", "_percent")) else f"{value:.3f}"


def measured_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The rows of an evaluation: its noisy input and its results."""
    divided = summary["composite_scale"] == "divided"
    rows = []
    for name, prefix in (("noisy (measured)", "noisy_"), (summary["name"], "")):
        means = {metric: summary.get(prefix + metric) for metric in METRICS}
        # NaN before it went through JSON, None after.
        cells = {
            metric: number(metric, value) for metric, value in means.items() if value is not None and value == value
        }
        if not prefix and summary.get("parameters") is not None:
            cells["parameters_m"] = f"{summary['parameters'] / 1e6:.3g}"
            cells["gmac_per_second"] = f"{summary['gmac_per_second']:.3g}"
        intervals = {}
        for metric in METRICS:
            low, high = summary["intervals"][prefix + metric]
            # None, or NaN before it went through JSON: a mean of one file has no interval.
            if low is not None and low == low:
                intervals[metric] = (number(metric, low), number(metric, high))
        rows.append(Row(name, "measured", cells, intervals, divided, summary["files"] - summary["failed"]))
    return rows


def paper_table(summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Published rows, then the measured ones; the noisy input of the first evaluation stands for all."""
    measured = [measured_rows(summary) for summary in summaries]
    return [*field_results(), measured[0][0], *(rows[1] for rows in measured)]


def filled_columns(rows: Sequence[Row]) -> dict[str, str]:
    """Headings of the columns that any row fills."""
    return {
        name: heading for name, heading in {**_COST_TITLES, **TITLES}.items() if any(name in row.cells for row in rows)
    }


def notes(rows: Sequence[Row]) -> list[str]:
    """What has to be said below the table."""
    lines = ["Published rows: Voice Bank + DEMAND, official test set of 824 utterances."]
    for row in rows:
        if row.kind == "measured":
            lines.append(f"{row.name}: mean of {row.files} files, 95 % bootstrap interval over files.")
    if any(row.divided for row in rows):
        lines.append(
            f"{_MARK} CSIG, CBAK and COVL with samples / 32768 within WSS, 0.1 to 0.24 higher than the standard ones."
        )
    return lines


def cell_text(row: Row, column: str) -> str:
    text = row.cells.get(column, "-")
    return text + _MARK if row.divided and column in _COMPOSITES and text != "-" else text


def format_text(rows: Sequence[Row]) -> str:
    """Aligned text; the interval of a measured row stands below it."""
    columns = filled_columns(rows)
    lines = [["", *columns.values()]]
    before = "published"
    for row in rows:
        if row.kind != before:
            lines.append([])
        before = row.kind
        lines.append([row.name, *(cell_text(row, column) for column in columns)])
        if row.intervals:
            lines.append(["  95 % from", *(row.intervals.get(column, ("", ""))[0] for column in columns)])
            lines.append(["         to", *(row.intervals.get(column, ("", ""))[1] for column in columns)])
    return "\n".join([*align(lines), "", *notes(rows)]) + "\n"


def align(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as text columns, the first to the left, the others to the right; an empty line stays empty."""
    full = [line for line in lines if line]
    widths = [max(len(line[i]) for line in full) for i in range(len(full[0]))]
    aligned = []
    for line in lines:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))
        ]
        aligned.append("  ".join(cells).rstrip())
    return aligned


def format_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; intervals stand in brackets behind the means."""
    columns = filled_columns(rows)
    lines = [f"| model | {' | '.join(columns.values())} |", f"| --- |{' ---: |' * len(columns)}"]
    for row in rows:
        name = row.name.replace("|", "\\|")
        if row.kind == "measured":
            name = f"**{name}**"
        cells = [cell_text(row, column) + _bracket(row, column) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{line}  " for line in notes(rows))]) + "\n"


def _bracket(row: Row, column: str) -> str:
    return f" [{row.intervals[column][0]}, {row.intervals[column][1]}]" if column in row.intervals else ""


def format_latex(rows: Sequence[Row]) -> str:
    """A LaTeX table for the package booktabs; intervals stand in a line of their own."""
    columns = filled_columns(rows)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        "\\toprule",
        " & ".join(["model", *(_latex(heading) for heading in columns.values())]) + r" \\",
        "\\midrule",
    ]
    before = ""
    for row in rows:
        if row.kind == "measured" and before == "published":
            lines.append("\\midrule")
        before = row.kind
        lines.append(" & ".join([_latex(row.name), *(_latex(cell_text(row, column)) for column in columns)]) + r" \\")
        if row.intervals:
            ranges = (
                rf"{{\scriptsize {'--'.join(row.intervals[column])}}}" if column in row.intervals else ""
                for column in columns
            )
            lines.append(" & ".join([r"\quad{\scriptsize 95\,\%}", *ranges]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}", *(f"% {line}" for line in notes(rows))]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    if text == "-":
        return "--"
    return text.translate(_LATEX)


def format_csv(rows: Sequence[Row]) -> str:
    """All columns, for other programs; the ends of the intervals have columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{metric}_{end}" for metric in METRICS for end in ("low", "high")]
    writer.writerow(["name", "kind", "files", *_COST_TITLES, *METRICS, *ends, "composite_scale", "source"])
    for row in rows:
        writer.writerow(
            [
                row.name,
                row.kind,
                row.files or "",
                *(row.cells.get(name, "") for name in (*_COST_TITLES, *METRICS)),
                *(end for metric in METRICS for end in row.intervals.get(metric, ("", ""))),
                "divided" if row.divided else "standard",
                row.source,
            ]
        )
    return text.getvalue()


def breakdown_text(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Breakdowns as aligned text: for each group the means, with WB-PESQ of the noisy input beside them."""
    parts = []
    for kind, groups in tables.items():
        lines = [[title(kind), "files", "noisy WB-PESQ", *TITLES.values()]]
        for group in groups:
            cells = [number("wb_pesq", group["noisy_wb_pesq"]), *(number(metric, group[metric]) for metric in METRICS)]
            lines.append([group["group"], str(group["files"]), *cells])
        parts.append("\n".join(align(lines)))
    return "\n\n".join(parts) + "\n" if parts else ""


def breakdown_csv(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Breakdowns as one table in long form, with the noisy input's means."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [*METRICS, *(f"noisy_{metric}" for metric in METRICS)]
    writer.writerow(["by", "group", "files", *names])
    for kind, groups in tables.items():
        for group in groups:
            values = (group[name] for name in names)
            cells = ("" if value is None or value != value else f"{value:.4f}" for value in values)
            writer.writerow([kind, group["group"], group["files"], *cells])
    return text.getvalue()
