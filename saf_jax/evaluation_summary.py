"""What an evaluation says at its end: means with intervals, breakdowns, failures, tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saf_jax import conditions, provenance, tables
from saf_jax.files import write_text
from saf_jax.metrics import METRICS
from saf_jax.results import NOISY_METRICS, SUMMARY, FileResult, write_json
from saf_jax.statistics import bootstrap_mean

_PACKAGES = ("pesq", "numpy", "scipy", "soundfile", "soxr", "jax", "flax")
_SHOWN_FAILURES = 10


def summarise(files: Sequence[FileResult], known: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Means, intervals, breakdowns and failures of scored files, as JSON values.

    Args:
      files: all files of the test set, failed ones included.
      known: conditions by file.

    Returns:
      The means by name of metric ("wb_pesq", "noisy_wb_pesq", ...; NaN where no file has a value), "intervals" and
      "counted" by the same names, "files", "failed" (nothing could be scored), "failed_metrics" (files by metric),
      "failures", "breakdowns".
    """
    means = {
        name: bootstrap_mean([file.values[name] for file in files if name in file.values])
        for name in (*METRICS, *NOISY_METRICS)
    }
    return {
        **{name: mean.mean for name, mean in means.items()},
        "intervals": {name: [mean.low, mean.high] for name, mean in means.items()},
        "counted": {name: mean.count for name, mean in means.items()},
        "files": len(files),
        "failed": sum(file.failed for file in files),
        "failed_metrics": Counter(metric for file in files for metric in file.failures if metric != "file"),
        "failures": [
            {"file": file.file, "metric": None if metric == "file" else metric, "reason": reason}
            for file in files
            for metric, reason in file.failures.items()
        ],
        "breakdowns": conditions.breakdown(files, known),
    }


def origin() -> dict[str, Any]:
    """Versions and commit that made the results."""
    return {"versions": provenance.versions(_PACKAGES), "commit": provenance.commit()}


def write_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Writes the tables and, last, summary.json, whose presence says that the evaluation is complete."""
    rows = tables.paper_table([summary])
    write_text(out / "table.txt", tables.format_text(rows))
    write_text(out / "table.csv", tables.format_csv(rows))
    write_text(out / "table.md", tables.format_markdown(rows))
    write_text(out / "table.tex", tables.format_latex(rows))
    write_text(out / "breakdown.csv", tables.breakdown_csv(summary["breakdowns"]))
    write_json(out / SUMMARY, summary)


def trim_remark(files: Sequence[FileResult]) -> list[str]:
    """A remark about lengths that differed, if any did."""
    trimmed = [file for file in files if file.trimmed_samples]
    if not trimmed:
        return []
    largest = max(trimmed, key=lambda file: file.trimmed_samples)
    return [
        f"{len(trimmed)} files were of unequal lengths and cut to the shortest "
        f"(at most {largest.trimmed_samples} samples at 16 kHz, {largest.file})"
    ]


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
    """Failures and times, for a person."""
    lines = []
    whole = [failure for failure in summary["failures"] if failure["metric"] is None]
    lines += [f"failed: {failure['file']}: {failure['reason']}" for failure in whole[:_SHOWN_FAILURES]]
    if len(whole) > _SHOWN_FAILURES:
        lines.append(f"... and {len(whole) - _SHOWN_FAILURES} more: see failures in {SUMMARY}")
    if whole:
        lines.append(f"{len(whole)} of {summary['files']} files could not be scored and are in no mean")
    for metric, count in summary["failed_metrics"].items():
        first = next(failure for failure in summary["failures"] if failure["metric"] == metric)
        lines.append(
            f"{metric} failed for {count} of {summary['files']} files, which are not in its mean "
            f"(the first: {first['file']}: {first['reason']}; all: failures in {SUMMARY})"
        )
    seconds = summary["seconds"]
    lines.append(
        f"scored {summary['scored_now']} files in {seconds['scoring_wall']:.1f} s with {summary['jobs']} processes"
    )
    if seconds["network_audio"]:
        factor = seconds["network"] / seconds["network_audio"]
        lines.append(
            f"network: {seconds['network']:.1f} s for {seconds['network_audio']:.1f} s of audio "
            f"(real-time factor {factor:.3f}, compilation included)"
        )
    return lines
