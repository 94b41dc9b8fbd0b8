"""A training run's log.jsonl, read: what happened, without what an interrupted run did twice."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saf_jax.errors import UserError
from saf_jax.files import explain_os_error

LOG_FILE = "log.jsonl"
RATINGS_FILE = "ratings.json"
"""Where a run keeps, by step, how good its checkpoints are: the higher the better, null where it is not known yet."""

LISTEN_FOLDER, LISTEN_INDEX = "listen", "files.json"
"""Where a run keeps some enhanced validation files, and what lists them."""

Entry = dict[str, Any]


class Curve(NamedTuple):
    """A quantity over steps.

    Attributes:
      steps: int [K], rising.
      values: float [K], finite.
    """

    steps: np.ndarray
    values: np.ndarray


def read_log(workdir: Path) -> list[Entry]:
    """The entries that count, in order of writing.

    A run that was interrupted starts again from a checkpoint: entries of later steps written before such a start are
    left out, since the steps were done again. A last line that was cut off is passed over.

    Args:
      workdir: folder of the run.

    Raises:
      UserError: no log there, or lines that are not of one.
    """
    path = workdir / LOG_FILE
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {explain_os_error(error)}") from error
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            event, step = entry["event"], entry["step"]
        except (ValueError, TypeError, KeyError):
            # A process that is killed while it writes leaves a part of a line.
            if not line.startswith("{") and line.strip():
                raise UserError(f"{path}: line {number} is not an entry of a training run's log") from None
            continue
        if event == "start":
            entries = [old for old in entries if old["step"] <= step]
        entries.append(entry)
    return entries


def curve(entries: Iterable[Entry], event: str, key: str) -> Curve:
    """One quantity of one kind of entry; values that are missing or not finite are left out."""
    points = {
        entry["step"]: float(entry[key]) for entry in entries if entry["event"] == event and _is_finite(entry.get(key))
    }
    steps = sorted(points)
    return Curve(np.array(steps, int), np.array([points[step] for step in steps], float))


def keys_of(entries: Iterable[Entry], event: str) -> list[str]:
    """Names of the quantities that entries of a kind hold, in order of appearance."""
    return list(dict.fromkeys(key for entry in entries if entry["event"] == event for key in entry))


def trained_seconds(entries: Iterable[Entry]) -> float:
    """Wall time between each start and the last entry before the next, summed."""
    total, last = 0.0, None
    for entry in entries:
        if entry["event"] != "start" and last is not None:
            total += max(0.0, entry["unix_seconds"] - last)
        last = entry["unix_seconds"]
    return total


def thinned(points: Curve, most: int) -> Curve:
    """At most `most` points: means of equal parts, so that a long run's curve is light and less noisy."""
    if len(points.steps) <= most:
        return points
    parts = np.array_split(np.arange(len(points.steps)), most)
    return Curve(
        np.array([points.steps[part[-1]] for part in parts]), np.array([points.values[part].mean() for part in parts])
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
