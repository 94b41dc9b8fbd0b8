"""`saf-jax compare A B [C ...]`: results side by side, with paired differences: did a change help?"""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from saf_jax import tables
from saf_jax.errors import UserError
from saf_jax.metrics import METRICS
from saf_jax.results import Results, finite, read_results
from saf_jax.statistics import bootstrap_mean

_SAME_PESQ = 1e-3


class Difference(NamedTuple):
    """How one set of results differs from another in one metric, file by file.

    Attributes:
      mean: mean difference over the common files; NaN without any.
      low: lower end of its 95 % bootstrap interval; NaN with too few files for one.
      high: upper end.
      files: files that have the metric in both.
      better: files in which the metric is higher.
      worse: files in which it is lower.
    """

    mean: float
    low: float
    high: float
    files: int
    better: int
    worse: int

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the interval excludes 0, else "no clear difference"."""
        if not math.isfinite(self.low):
            return "too few files"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no clear difference"


def difference(base: Results, other: Results, metric: str) -> Difference:
    """Paired difference `other - base` of a metric over the files that have it in both."""
    base_values = {file.file: file.values[metric] for file in base.files if metric in file.values}
    pairs = [
        (base_values[file.file], file.values[metric])
        for file in other.files
        if metric in file.values and file.file in base_values
    ]
    changes = [after - before for before, after in pairs]
    mean = bootstrap_mean(changes)
    better, worse = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return Difference(mean.mean, mean.low, mean.high, len(changes), better, worse)


def labels(results: Sequence[Results]) -> list[str]:
    """What each is called: its name, or its folder where a name occurs twice."""
    names = [item.name for item in results]
    return [str(item.folder) if names.count(item.name) > 1 else item.name for item in results]


def compare(results: Sequence[Results]) -> dict[str, Any]:
    """Compares results with the first of them.

    Args:
      results: two and more.

    Returns:
      "base" and its "folder"; "means": by what each is called, its means by metric; "others": a list of {"name",
      "folder", "differences": by metric the fields of `Difference` and "verdict"}, "common_files" and "warnings".

    Raises:
      UserError: fewer than two results, no common file, or scores that cannot be compared.
    """
    if len(results) < 2:
        raise UserError("compare needs two results folders and more: saf-jax compare A B")
    names = labels(results)
    base, *others = results
    warnings, compared = [], []
    for other, name in zip(others, names[1:]):
        if other.summary.get("composite_scale") != base.summary.get("composite_scale"):
            raise UserError(f"{other.folder} and {base.folder} differ in --composite-scale: evaluate one of them again")
        scored = [{file.file for file in item.files if not file.failed} for item in (base, other)]
        common = scored[0] & scored[1]
        if not common:
            raise UserError(f"{other.folder} and {base.folder} have no scored file in common")
        if left := len(scored[0] | scored[1]) - len(common):
            warnings.append(f"{left} files are in only one of {names[0]} and {name}: left out")
        if moved := _changed_inputs(base, other):
            warnings.append(f"{moved} files have other scores for the noisy input in {name}: not the same test set?")
        found = {metric: difference(base, other, metric) for metric in METRICS}
        compared.append(
            {
                "name": name,
                "folder": str(other.folder),
                "common_files": len(common),
                "differences": {metric: {**item._asdict(), "verdict": item.verdict} for metric, item in found.items()},
            }
        )
    means = {name: {metric: item.summary.get(metric) for metric in METRICS} for name, item in zip(names, results)}
    return {"base": names[0], "folder": str(base.folder), "means": means, "others": compared, "warnings": warnings}


def _changed_inputs(base: Results, other: Results) -> int:
    """Files of one name whose noisy input scored differently: they cannot be the same recordings."""
    noisy = {file.file: file.values.get("noisy_wb_pesq") for file in base.files if not file.failed}

    def differs(one: float | None, other: float | None) -> bool:
        # Two machines may round differently.
        return (one is None) != (other is None) or (one is not None and abs(one - other) > _SAME_PESQ)

    return sum(
        file.file in noisy and differs(file.values.get("noisy_wb_pesq"), noisy[file.file])
        for file in other.files
        if not file.failed
    )


def format_text(results: Sequence[Results], comparison: dict[str, Any]) -> str:
    """The means side by side, then the paired differences."""
    lines: list[Sequence[str]] = [["", "files", *tables.TITLES.values()]]
    for item, name in zip(results, labels(results)):
        scored = sum(not file.failed for file in item.files)
        means = (tables.number(metric, item.summary.get(metric)) for metric in METRICS)
        lines.append([name, str(scored), *means])
    parts = ["\n".join(tables.align(lines))]
    for other in comparison["others"]:
        rows: list[Sequence[str]] = [
            [
                f"{other['name']} - {comparison['base']}",
                "mean",
                "95 % from",
                "to",
                "higher",
                "lower",
                "files",
                "verdict",
            ]
        ]
        for metric, item in other["differences"].items():
            numbers = (_signed(metric, item[name]) for name in ("mean", "low", "high"))
            counts = (str(item[name]) for name in ("better", "worse", "files"))
            rows.append([tables.TITLES[metric], *numbers, *counts, item["verdict"]])
        parts.append("\n".join(tables.align(rows)))
    notes = ["Differences are paired: file by file over the common files, 95 % bootstrap interval over files."]
    notes += [f"warning: {line}" for line in comparison["warnings"]]
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


def _signed(metric: str, value: float) -> str:
    text = tables.number(metric, value)
    return text if text.startswith("-") else f"+{text}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results folders; the first is the base")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    results = [read_results(folder) for folder in args.results]
    comparison = compare(results)
    if args.json:
        print(json.dumps(finite(comparison), indent=2, allow_nan=False))
    else:
        print(format_text(results, comparison))
    return 0
