"""The runs of a sweep: what each is known by, where it lies, and what of it is there."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saf_jax.config import Config, config_to_dict
from saf_jax.data.mixing import EXAMPLES_VERSION
from saf_jax.errors import UserError
from saf_jax.results import PER_FILE, SUMMARY, read_per_file, read_results
from saf_jax.run_log import LOG_FILE
from saf_jax.sweep_data import ScoreSet, SweepData, listing_of, portable, training_folders
from saf_jax.sweep_spec import Settings, Spec, as_overrides, changed_settings, resolve, slug

RECORD_FILE, FAILURE_FILE, OUTPUT_FILE = "run.json", "failure.json", "output.txt"
"""What a trained run is, why one failed, and what its process said."""

SCORES_FOLDER = "scores"

# Settings that change how fast a run is, not what it becomes.
_MEANS = (
    "data.workers", "data.cache_gb", "data.cache_folder", "train.checkpoint_seconds", "train.log_every",
    "train.tensorboard", "discriminator.label_processes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
    """One training of a sweep.

    Attributes:
      row: name of the row that it belongs to.
      seed: its `train.seed`.
      base: name or path of its config.
      settings: what changes that config.
      config: the whole config.
      folder: where it lies.
    """

    row: str
    seed: int
    base: str
    settings: Settings
    config: Config
    folder: Path

    @property
    def name(self) -> str:
        """What it is called for people."""
        return f"{self.row}, seed {self.seed}"

    def command(self) -> list[str]:
        """The words that train the same network by hand."""
        arguments = ["--config", self.base, "--workdir", str(self.folder)]
        return ["saf-jax", "train", *arguments, "--set", *as_overrides(self.settings)]


@dataclasses.dataclass(frozen=True)
class State:
    """What of a run is there.

    Attributes:
      trained: the training has ended.
      missing: sets that it has not been scored on.
      unscored: what of the other sets has no scores, in words; None where all has.
      failure: why it failed when it was last tried.
      step: the last step of its log; None before the first.
    """

    trained: bool
    missing: tuple[ScoreSet, ...]
    unscored: str | None = None
    failure: str | None = None
    step: int | None = None

    @property
    def done(self) -> bool:
        return self.trained and not self.missing and not self.unscored

    @property
    def reason(self) -> str | None:
        """Why it is not done, where it failed."""
        return None if self.done else self.failure or self.unscored

    def __str__(self) -> str:
        if self.done:
            return "done"
        if self.reason:
            return f"failed: {self.reason}"
        if self.trained:
            return f"trained; not scored on {', '.join(item.name for item in self.missing)}"
        return "missing" if self.step is None else f"interrupted at step {self.step}"


def plan_runs(
    spec: Spec,
    where: str,
    base: Config,
    rows: Mapping[str, Settings],
    seeds: Sequence[int],
    data: SweepData,
    workdir: Path,
    usual: Settings,
) -> list[PlannedRun]:
    """All runs of a sweep, seed by seed: the first runs of all rows come first.

    Args:
      spec: names base and rows.
      where: the spec's file, for messages.
      base: the spec's base config.
      rows: settings by row, data included.
      seeds: values of `train.seed`.
      data: its `places` are left out of what runs are known by.
      workdir: folder of the sweep.
      usual: settings that folders' names do not mention.

    Raises:
      UserError: values that do not fit, or two rows with the same settings.
    """
    runs, rows_by_identity = [], {}
    usual_config = resolve(base, usual, where)
    listing = functools.cache(functools.partial(listing_of, made=data.folder))
    for seed in seeds:
        for row in spec.rows:
            settings = {**rows[row.name], "train.seed": seed}
            config = resolve(base, settings, f"{where}: row {row.name!r}")
            # A run on other recordings is another run, which must not stand in one table with this one.
            identity = identity_of(config, data.places, listing(training_folders(config)))
            if (other := rows_by_identity.setdefault(identity, row.name)) != row.name:
                raise UserError(f"{where}: the rows {other!r} and {row.name!r} are the same settings: leave one out")
            folder = workdir / "runs" / f"{_folder_name(config, usual_config, data)}-seed{seed}-{identity}"
            runs.append(PlannedRun(row.name, seed, spec.base, settings, config, folder))
    return runs


def identity_of(config: Config, places: Mapping[str, str], recordings: str = "") -> str:
    """What a run is known by: a hash of all settings that are not a config's defaults and bear on its result.

    A field that a later version adds leaves it as it is, and so does a folder of `places` that lies elsewhere.

    Args:
      config: of the run.
      places: names of folders.
      recordings: what tells the recordings that it is trained on from others in the same folders.
    """
    changed = changed_settings(config, Config())
    known = {key: portable(value, places) for key, value in changed.items() if key not in _MEANS}
    if recordings:
        known["recordings"] = recordings
    if config.data.train_noise and not config.data.train_noisy:
        known["mixing"] = EXAMPLES_VERSION
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:10]


def state_of(run: PlannedRun, sets: Sequence[ScoreSet]) -> State:
    """Looks at a run's folder."""
    trained = is_trained(run.folder)
    missing = tuple(item for item in sets if not is_scored(scores_folder(run, item)))
    unscored = [f"{item.name}: {text}" for item in sets if (text := unscored_files(scores_folder(run, item)))]
    failure = read_json(run.folder / FAILURE_FILE)
    entry = last_entry(run.folder)
    return State(
        trained,
        missing,
        unscored[0] if unscored else None,
        failure["reason"] if failure else None,
        entry["step"] if entry else None,
    )


def is_trained(folder: Path) -> bool:
    """Whether a run has noted that it ended; a damaged note counts as none, and is written again."""
    return {"parameters", "gmac_per_second", "seconds_per_step"} <= (read_json(folder / RECORD_FILE) or {}).keys()


def is_scored(folder: Path) -> bool:
    """Whether a folder holds a finished evaluation that can be read."""
    with contextlib.suppress(UserError):
        read_results(folder)
        return True
    return False


def discard_damaged_scores(folder: Path) -> None:
    """Removes a table of scores that cannot be read, so that all files are scored again."""
    if (folder / PER_FILE).is_file():
        try:
            read_per_file(folder)
        except UserError:
            (folder / PER_FILE).unlink()


def unscored_files(folder: Path) -> str | None:
    """What a finished evaluation could not score, in words; None where it scored all or has not finished."""
    summary = read_json(folder / SUMMARY)
    if not summary or not summary.get("failed"):
        return None
    first = next((item for item in summary.get("failures", ()) if item["metric"] is None), None)
    if first is None:
        return None
    return f"files without scores: {summary['failed']} ({first['file']}: {first['reason']})"


def scores_folder(run: PlannedRun, score_set: ScoreSet) -> Path:
    """Where the scores of a run on a set lie."""
    return run.folder / SCORES_FOLDER / score_set.key


def share(runs: Sequence[PlannedRun], index: int, count: int) -> list[PlannedRun]:
    """Part `index`, from 1, of `count` equal parts of the runs: the same for all who ask."""
    return list(runs)[index - 1 :: count]


def last_entry(folder: Path) -> dict[str, Any] | None:
    """The newest whole line of a run's log; None without any."""
    try:
        with (folder / LOG_FILE).open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - 4096))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            if "step" in entry:
                return entry
        except (ValueError, TypeError):
            continue
    return None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object that this package wrote; None where there is none, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _folder_name(config: Config, usual: Config, data: SweepData) -> str:
    """What tells a run from the usual ones, in words: the same whichever spec asks for it."""
    ours, theirs = config_to_dict(config), config_to_dict(usual)
    parts = []
    for section, fields in ours.items():
        for key, value in fields.items():
            if section == "data":
                # Only a choice of noise: the folders are those of the sweep.
                chosen = key == "train_noise" and any([str(path)] == value for path in data.noise.values())
                parts += ["some-noise"] if chosen else []
            elif value != theirs[section][key] and (section, key) != ("train", "seed"):
                parts.append(f"{key}_{slug(json.dumps(value))}")
    return slug("-".join(parts))[:80].rstrip("-_") if parts else "base"
