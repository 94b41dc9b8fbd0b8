"""What each test file holds (noise, SNR, kind of noise, speaker), and scores broken down by it."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from saf_jax.errors import UserError
from saf_jax.files import explain_os_error
from saf_jax.metrics import METRICS
from saf_jax.results import NOISY_METRICS, FileResult
from saf_jax.statistics import bootstrap_mean

Conditions = dict[str, dict[str, str]]
"""By file name without ending, text by kind of condition: "noise", "snr_db", "kind", "speaker"."""

NOISE_KINDS = ("stationary", "non-stationary", "impulsive", "reverberant")
"""The kinds of noise that results are broken down by."""

SNR_EDGES_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)
"""Bounds of the bins for measured input SNRs."""

MEASURED_SNR = "measured_snr_db"

_TITLES = {
    "noise": "noise",
    "snr_db": "SNR (dB)",
    MEASURED_SNR: "measured input SNR (dB)",
    "kind": "kind of noise",
    "speaker": "speaker",
}

# Columns of manifests, and the condition that they tell.
_MANIFEST_COLUMNS = {
    "noise": "noise",
    "noise_type": "noise",
    "snr_db": "snr_db",
    "snr": "snr_db",
    "kind": "kind",
    "noise_kind": "kind",
    "speaker": "speaker",
}


def title(condition: str) -> str:
    """What a kind of condition is called in headings."""
    return _TITLES.get(condition, condition)


def read_log(path: str | os.PathLike) -> Conditions:
    """Reads a log of Voice Bank + DEMAND (log_testset.txt): one line a file, "p232_001 bus 17.5".

    Raises:
      UserError: cannot be read, or a line is not of that form.
    """
    conditions = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not _is_number(fields[2]):
            raise UserError(
                f"{path}: line {number} is not 'name noise SNR', such as 'p232_001 bus 17.5': {line[:80]!r}"
            )
        conditions[_stem(fields[0])] = {"noise": fields[1], "snr_db": f"{float(fields[2]):g}"}
    if not conditions:
        raise UserError(f"{path}: holds no line: give the data set's log file")
    return conditions


def read_manifest(path: str | os.PathLike) -> Conditions:
    """Reads a manifest: CSV (or TSV, by its ending) with the columns file and any of noise, snr_db, kind, speaker.

    A row that names a room impulse response (column rir_file) and no kind counts as reverberant.

    Raises:
      UserError: cannot be read, no column file, or nothing that a breakdown could use.
    """
    delimiter = "\t" if Path(path).suffix.lower() in (".tsv", ".tab") else ","
    try:
        rows = list(csv.DictReader(_lines(path), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{path}: is not a table ({error}): give a CSV or TSV file") from error
    columns = list(rows[0]) if rows else []
    known = [column for column in columns if column in _MANIFEST_COLUMNS]
    if "file" not in columns or not (known or "rir_file" in columns):
        raise UserError(
            f"{path}: needs a column 'file' and one of {', '.join(_MANIFEST_COLUMNS)}, rir_file "
            f"(found: {', '.join(str(column) for column in columns) or 'nothing'})"
        )
    conditions: Conditions = {}
    for row in rows:
        entry = {_MANIFEST_COLUMNS[column]: row[column] for column in known if row[column]}
        if row.get("rir_file"):
            entry.setdefault("kind", "reverberant")
        if "snr_db" in entry and _is_number(entry["snr_db"]):
            entry["snr_db"] = f"{float(entry['snr_db']):g}"
        if entry and row["file"]:
            conditions[_stem(row["file"])] = entry
    return conditions


def match(conditions: Conditions, files: Mapping[str, Sequence[Path]]) -> Conditions:
    """Finds the conditions of files.

    Args:
      conditions: as read; a name is a path or the end of one ("p232_001", "test/noisy/p232_001").
      files: by file, the paths that it is known by.

    Returns:
      The conditions by file; the name that agrees with most of a path wins.
    """
    matched = {}
    for file, paths in files.items():
        for path in paths:
            whole = Path(os.path.abspath(path)).with_suffix("")
            ends = (whole.as_posix(), *("/".join(whole.parts[start:]) for start in range(1, len(whole.parts))))
            name = next((end for end in ends if end in conditions), None)
            if name is not None:
                matched[file] = conditions[name]
                break
    return matched


def breakdown(files: Sequence[FileResult], conditions: Mapping[str, Mapping[str, str]]) -> dict[str, list[dict]]:
    """Means per condition.

    Args:
      files: scored files; failed ones are passed over.
      conditions: of the files. Where they state no SNR, the measured input SNR is binned; where they state no kind of
        noise, the measured one stands in.

    Returns:
      By kind of condition, a list of groups: {"group", "files", and the means by name of metric, with
      "wb_pesq_interval" and so on: [low, high]}; None where no file of the group has a value.
    """
    scored = [file for file in files if not file.failed]
    of_file = {file.file: dict(conditions.get(file.file, {})) for file in scored}
    stated = dict.fromkeys(kind for entry in of_file.values() for kind in entry)
    for file in scored:
        if file.noise_kind is not None:
            of_file[file.file].setdefault("kind", file.noise_kind)
        if "snr_db" not in stated:
            of_file[file.file][MEASURED_SNR] = _snr_bin(file.input_snr_db)
    present = {kind for entry in of_file.values() for kind in entry}
    kinds = [kind for kind in dict.fromkeys([*_TITLES, *stated]) if kind in present]
    tables = {}
    for kind in kinds:
        groups: dict[str, list[FileResult]] = {}
        for file in scored:
            groups.setdefault(of_file[file.file].get(kind, "unknown"), []).append(file)
        tables[kind] = [_group(name, groups[name]) for name in sorted(groups, key=_order)]
    return tables


def _group(name: str, files: Sequence[FileResult]) -> dict[str, Any]:
    group: dict[str, Any] = {"group": name, "files": len(files)}
    for metric in METRICS:
        mean = bootstrap_mean([file.values[metric] for file in files if metric in file.values])
        group[metric] = mean.mean
        group[f"{metric}_interval"] = [mean.low, mean.high]
    for metric in NOISY_METRICS:
        values = [file.values[metric] for file in files if metric in file.values]
        group[metric] = math.fsum(values) / len(values) if values else math.nan
    return group


def _snr_bin(value: float | None) -> str:
    if value is None:
        return "no noise"
    below = sum(edge <= value for edge in SNR_EDGES_DB)
    if below == 0:
        return f"below {SNR_EDGES_DB[0]:g}"
    if below == len(SNR_EDGES_DB):
        return f"{SNR_EDGES_DB[-1]:g} and more"
    return f"{SNR_EDGES_DB[below - 1]:g} to {SNR_EDGES_DB[below]:g}"


_ORDERED = (*NOISE_KINDS, *(_snr_bin(value) for value in (-math.inf, *SNR_EDGES_DB, None)))


def _order(group: str) -> tuple:
    # Numbers by value, kinds of noise and bins in their own order, everything else by name, "unknown" last.
    if _is_number(group):
        return (0, float(group), group)
    if group in _ORDERED:
        return (1, _ORDERED.index(group), group)
    return (3 if group == "unknown" else 2, 0, group)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _stem(file: str) -> str:
    """A name without its ending; only known audio endings go, since names may hold points."""
    from saf_jax.audio import SUFFIXES

    path = PurePosixPath(file.replace("\\", "/"))
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).as_posix()


def _lines(path: str | os.PathLike) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {explain_os_error(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text: give the data set's log or manifest") from error
