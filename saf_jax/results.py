"""What an evaluation leaves behind: per_file.csv and summary.json in a folder, written here and read again here."""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saf_jax.errors import UserError
from saf_jax.files import explain_os_error, write_text
from saf_jax.metrics import METRICS

PER_FILE, SUMMARY, ENHANCED = "per_file.csv", "summary.json", "enhanced"

NOISY_METRICS = tuple(f"noisy_{name}" for name in METRICS)
"""Names of the same metrics for the unprocessed input."""

_COLUMNS = (
    "file",
    *METRICS,
    *NOISY_METRICS,
    "input_snr_db",
    "noise_kind",
    "seconds",
    "trimmed_samples",
    "failures",
    "metric_seconds",
    "fingerprint",
)


@dataclasses.dataclass(frozen=True)
class FileResult:
    """Scores of one file.

    Attributes:
      file: relative name without ending, the same for clean, noisy and enhanced.
      values: by name of metric, those of the noisy input under "noisy_..."; a metric without a value is left out.
      input_snr_db: P.56 active level of the clean speech minus RMS level of (noisy - clean); None without a value.
      noise_kind: of (noisy - clean), see `saf_jax.noise_kind`.
      seconds: length of the clean recording.
      trimmed_samples: how many samples at 16 kHz were cut off the longest of the three to make the lengths equal.
      failures: reason by name of metric; under "file" where nothing could be scored at all.
      metric_seconds: time that the metrics took.
      fingerprint: changes with the input files, the weights and the settings of the metrics.
    """

    file: str
    values: Mapping[str, float]
    input_snr_db: float | None = None
    noise_kind: str | None = None
    seconds: float = 0.0
    trimmed_samples: int = 0
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metric_seconds: float = 0.0
    fingerprint: str = ""

    @property
    def failed(self) -> bool:
        """True if nothing could be scored."""
        return "file" in self.failures


@dataclasses.dataclass(frozen=True)
class Results:
    """A results folder, read.

    Attributes:
      folder: where it lies.
      summary: what summary.json holds.
      files: scored and failed files, sorted by name.
      conditions: by file, its conditions ("noise", "snr_db", "kind", "speaker", as far as known).
    """

    folder: Path
    summary: dict[str, Any]
    files: list[FileResult]
    conditions: dict[str, dict[str, str]]

    @property
    def name(self) -> str:
        """What the results are called in tables."""
        return str(self.summary.get("name") or self.folder.name)


def write_per_file(
    folder: Path, files: Iterable[FileResult], conditions: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Writes per_file.csv atomically, sorted by name, with a column per kind of condition."""
    conditions = conditions or {}
    kinds = list(dict.fromkeys(kind for of_file in conditions.values() for kind in of_file))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS[:-3], *(f"condition_{kind}" for kind in kinds), *_COLUMNS[-3:]])
    for result in sorted(files, key=lambda item: item.file):
        numbers = [result.values.get(name) for name in (*METRICS, *NOISY_METRICS)]
        known = conditions.get(result.file, {})
        writer.writerow(
            [
                result.file,
                *("" if value is None else repr(value) for value in (*numbers, result.input_snr_db)),
                result.noise_kind or "",
                repr(result.seconds),
                result.trimmed_samples,
                *(known.get(kind, "") for kind in kinds),
                json.dumps(dict(result.failures), ensure_ascii=False) if result.failures else "",
                repr(result.metric_seconds),
                result.fingerprint,
            ]
        )
    write_text(folder / PER_FILE, text.getvalue())


def read_per_file(folder: Path) -> tuple[list[FileResult], dict[str, dict[str, str]]]:
    """Reads per_file.csv: the results, and the conditions of each file.

    Raises:
      UserError: missing, or not such a table.
    """
    path = folder / PER_FILE
    files, conditions = [], {}
    try:
        with path.open(encoding="utf-8", newline="") as table:
            reader = csv.DictReader(table)
            if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(f"{path}: the column {missing[0]!r} is missing: evaluate again into another folder")
            for row in reader:
                files.append(_result_of_row(row))
                known = {key[len("condition_") :]: row[key] for key in row if key.startswith("condition_") and row[key]}
                if known:
                    conditions[row["file"]] = known
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {explain_os_error(error)}") from error
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path}: is damaged ({error}): remove it and evaluate again") from error
    return files, conditions


def _result_of_row(row: Mapping[str, str]) -> FileResult:
    return FileResult(
        file=row["file"],
        values={name: float(row[name]) for name in (*METRICS, *NOISY_METRICS) if row[name] != ""},
        input_snr_db=float(row["input_snr_db"]) if row["input_snr_db"] else None,
        noise_kind=row["noise_kind"] or None,
        seconds=float(row["seconds"]),
        trimmed_samples=int(row["trimmed_samples"]),
        failures=json.loads(row["failures"]) if row["failures"] else {},
        metric_seconds=float(row["metric_seconds"]),
        fingerprint=row["fingerprint"],
    )


def read_results(folder: str | os.PathLike) -> Results:
    """Reads a results folder.

    Raises:
      UserError: no such folder, or it does not hold a finished evaluation.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give the folder that eval.py wrote (--out)")
    if not (folder / SUMMARY).is_file():
        mend = "run the same eval.py command again to finish it" if (folder / PER_FILE).is_file() else "give one"
        raise UserError(f"{folder}: holds no finished evaluation (no {SUMMARY}): {mend}")
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / SUMMARY}: cannot be read ({error}): evaluate again") from error
    if not isinstance(summary, dict) or not {"files", "failed", "failures", "breakdowns"} <= summary.keys():
        raise UserError(f"{folder / SUMMARY}: is not what an evaluation writes: evaluate again")
    files, conditions = read_per_file(folder)
    return Results(folder, summary, sorted(files, key=lambda item: item.file), conditions)


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same nested mappings and lists with None for numbers that are not finite, as strict JSON needs it."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
