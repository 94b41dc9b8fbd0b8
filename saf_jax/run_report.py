"""The page of a training run: curves from its log, settings, and validation files to look at and listen to."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from saf_jax import report_figures, tables
from saf_jax.errors import UserError
from saf_jax.files import explain_os_error, write_text
from saf_jax.metric_pool import METRICS
from saf_jax.report_page import FILE_NAME, check_packages, render, sides
from saf_jax.run_log import (
    LISTEN_FOLDER,
    LISTEN_INDEX,
    LOG_FILE,
    RATINGS_FILE,
    Curve,
    Entry,
    curve,
    keys_of,
    read_log,
    thinned,
    trained_seconds,
)

CONFIG_FILE = "config.json"
_POINTS = 400
_SIDES = ("noisy", "enhanced", "clean")
# What entries of training hold besides the parts of the loss.
_NOT_LOSSES = (
    "unix_seconds", "event", "step", "epoch", "skipped", "loss", "gradient_norm", "learning_rate",
    "audio_seconds_per_second", "device_memory_gb",
)  # fmt: skip


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a training run."""
    return (Path(folder) / LOG_FILE).is_file()


def write_run_report(workdir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a training run, whether it has ended or not.

    Args:
      workdir: folder of the run.
      out: the page; None puts it into the folder.

    Returns:
      Path of the page.

    Raises:
      UserError: not the folder of a run, a missing package, or the page cannot be written.
    """
    check_packages()
    workdir = Path(workdir)
    path = Path(out) if out is not None else workdir / FILE_NAME
    write_text(path, render("run_report.html.j2", _content(workdir)))
    return path


def _content(workdir: Path) -> dict[str, Any]:
    """Everything the template shows."""
    entries = read_log(workdir)
    return {
        "name": workdir.resolve().name,
        "colours": report_figures.COLOURS,
        "headline": _headline(entries),
        "facts": _facts(workdir, entries),
        "warnings": _warnings(entries),
        "plots": _plots(entries),
        "listen": _listening_files(workdir),
        "config": _read_json(workdir / CONFIG_FILE, "the run cannot be loaded without it: restore it"),
    }


def _headline(entries: list[Entry]) -> list[dict[str, str]]:
    """The last validation as large figures, each with its best value and the noisy input's."""
    losses = curve(entries, "valid", "valid_loss")
    shown = []
    if len(losses.steps):
        best = losses.values.argmin()
        shown.append(
            {
                "title": "validation loss",
                "value": f"{losses.values[-1]:.4f}",
                "note": f"lowest {losses.values[best]:.4f} at step {losses.steps[best]}",
            }
        )
    for metric in METRICS:
        values, noisy = curve(entries, "scores", metric), curve(entries, "scores", f"noisy_{metric}")
        if len(values.steps):
            note = f"best {tables.number(metric, values.values.max())}"
            if len(noisy.steps):
                note += f", noisy {tables.number(metric, noisy.values[-1])}"
            shown.append(
                {"title": tables.TITLES[metric], "value": tables.number(metric, values.values[-1]), "note": note}
            )
    return shown


def _facts(workdir: Path, entries: list[Entry]) -> list[tuple[str, str]]:
    starts = [entry for entry in entries if entry["event"] == "start"]
    last = entries[-1] if entries else {"event": "nothing", "step": 0}
    state = {
        "end": "finished",
        "stopped_early": "finished, stopped early",
        "preempted": "stopped, the same command resumes",
    }.get(last["event"], "under way")
    speed = curve(entries, "train", "audio_seconds_per_second")
    facts = [("state", f"{state}, step {last['step']:,}")]
    if starts:
        facts.append(("devices", str(starts[-1].get("devices", "not noted"))))
        facts.append(("time", f"{trained_seconds(entries) / 3600:.2f} hours, started {len(starts)} times"))
    if len(speed.steps):
        facts.append(("speed", f"{np.median(speed.values):.1f} seconds of audio per second (median)"))
    ratings = {
        int(step): value for step, value in (_read_json(workdir / RATINGS_FILE) or {}).items() if value is not None
    }
    if ratings:
        best = max(ratings, key=ratings.__getitem__)
        facts.append(("best checkpoint", f"step {best:,}"))
    return facts


def _warnings(entries: list[Entry]) -> list[str]:
    found = []
    skipped = sum(entry.get("skipped", 0) for entry in entries if entry["event"] == "train")
    if skipped:
        found.append(f"{skipped} steps were skipped, since their gradient was not finite.")
    losses = curve(entries, "valid", "valid_loss")
    if len(losses.steps) >= 5 and (best := int(losses.values.argmin())) < len(losses.steps) - 3:
        found.append(
            f"The validation loss was lowest at step {losses.steps[best]} and has not fallen in the "
            f"{len(losses.steps) - 1 - best} validations since: the network may be overfitting; see the gap below."
        )
    return found


def _plots(entries: list[Entry]) -> list[tuple[str, str]]:
    """Titles and pictures of all curves that the log has points for."""

    def of(event: str, key: str) -> Curve:
        return thinned(curve(entries, event, key), _POINTS)

    parts = [key for key in keys_of(entries, "train") if key not in _NOT_LOSSES]
    wanted: list[tuple[str, dict[str, Curve], bool]] = [
        ("loss", {"training": of("train", "loss"), "validation": of("valid", "valid_loss")}, True),
        ("gap: validation minus training loss", {"gap": of("valid", "gap")}, False),
        *(
            (tables.TITLES[metric], {"enhanced": of("scores", metric), "noisy": of("scores", f"noisy_{metric}")}, False)
            for metric in METRICS
        ),
        *(
            (f"loss: {part}", {"training": of("train", part), "validation": of("valid", f"valid_{part}")}, True)
            for part in parts
        ),
        ("learning rate", {"learning rate": of("train", "learning_rate")}, False),
        ("gradient norm", {"gradient norm": of("train", "gradient_norm")}, True),
        ("seconds of audio per second", {"speed": of("train", "audio_seconds_per_second")}, False),
        ("device memory (GB)", {"memory": of("train", "device_memory_gb")}, False),
    ]
    plots = []
    for title, curves, log_scale in wanted:
        filled = {name: points for name, points in curves.items() if len(points.steps)}
        if filled:
            plots.append((title, report_figures.line_plot(filled, log_scale=log_scale)))
    return plots


def _listening_files(workdir: Path) -> dict[str, Any] | None:
    """The validation files that the last validation kept, with pictures and sound."""
    folder = workdir / LISTEN_FOLDER
    if (index := _read_json(folder / LISTEN_INDEX)) is None:
        return None
    found = []
    for number, name in enumerate(index["names"], 1):
        paths = {side: folder / str(number) / f"{side}.flac" for side in _SIDES}
        found.append({"name": name, "sides": sides(paths)})
    return {"step": index["step"], "files": found}


def _read_json(path: Path, mend: str = "remove it") -> Any:
    """What a JSON file holds; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {explain_os_error(error)}") from error
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}): {mend}") from error
