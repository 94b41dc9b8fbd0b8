"""What a training run consists of besides the arrays on the devices, and how it is set up."""

import contextlib
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from saf_jax import parallel, tensorboard
from saf_jax.best_metric import check_best_metric, resolved_metric
from saf_jax.checkpoint import CONFIG_FILE, Checkpoints, holds_checkpoints, read_run_config
from saf_jax.companions import Companion
from saf_jax.config import Config, config_differences, config_to_dict
from saf_jax.data import pipeline
from saf_jax.errors import UserError
from saf_jax.files import make_folder, user_errors, write_text
from saf_jax.metric_labels import check_label_package
from saf_jax.observers import Observer
from saf_jax.run_log import LOG_FILE, read_log
from saf_jax.validation import Validation

# Settings that a resumed run may change: they say how long and with what means, not what is trained.
_MAY_CHANGE = (
    "train.epochs", "train.steps", "train.minutes", "train.checkpoint_seconds", "train.keep_best", "train.log_every",
    "train.tensorboard", "discriminator.label_processes",
    "data.workers", "data.cache_gb", "data.cache_folder",
)  # fmt: skip


@dataclasses.dataclass
class HostState:
    """What the host remembers from step to step; with the state on the devices it makes a checkpoint.

    Attributes:
      valid_loss: the last validation loss.
      lowest_loss: lowest validation loss so far, for the plateau schedule.
      stalled: validations since then, or since the last halving of the learning rate.
      best_rating: highest rating so far, for the early stop.
      unimproved: ratings since then.
      bad_steps: the last unusable steps, if no usable one came after them.
      seconds: that the steps took, for `train.minutes`; 0 without.
    """

    valid_loss: float | None = None
    lowest_loss: float | None = None
    stalled: int = 0
    best_rating: float | None = None
    unimproved: int = 0
    bad_steps: list[int] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def learning_rate_factor(self, valid_loss: float, patience: int) -> float:
        """Takes a validation loss; 0.5 when it has not fallen for `patience` validations (DB-AIAT), else 1."""
        if self.lowest_loss is None or valid_loss < self.lowest_loss:
            self.lowest_loss, self.stalled = valid_loss, 0
            return 1.0
        self.stalled += 1
        if self.stalled < patience:
            return 1.0
        self.stalled = 0
        return 0.5

    def rated(self, rating: float) -> None:
        """Takes the rating of a validation, the higher the better."""
        if self.best_rating is None or rating > self.best_rating:
            self.best_rating, self.unimproved = rating, 0
        else:
            self.unimproved += 1


@dataclasses.dataclass
class Run:
    """One training run: its settings, data and outputs.

    Attributes:
      config: all settings.
      workdir: folder of the run.
      steps_per_epoch, total_steps: in optimiser steps.
      batches: of training examples, this process's part of each.
      validation: measures the validation loss.
      checkpoints: of this run.
      host: what the host remembers; part of each checkpoint.
      companions: what accompanies the training; by `training.companions_of`.
      quiet: no progress bar.
      observers: what shows the log and validation files to people.
    """

    config: Config
    workdir: Path
    steps_per_epoch: int
    total_steps: int
    batches: pipeline.Batches
    validation: Validation
    checkpoints: Checkpoints
    quiet: bool
    host: HostState = dataclasses.field(default_factory=HostState)
    companions: list[Companion] = dataclasses.field(default_factory=list)
    observers: list[Observer] = dataclasses.field(default_factory=list)

    @property
    def validate_every(self) -> int:
        """Steps between validations."""
        return self.config.train.validate_every or self.steps_per_epoch

    def log(self, event: str, **entry: Any) -> None:
        """Adds a line to the log and shows it; only the main process does."""
        if parallel.is_main_process():
            entry = {"unix_seconds": round(time.time(), 3), "event": event, **entry}
            with user_errors(self.workdir / LOG_FILE), (self.workdir / LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            for observer in self.observers:
                observer.show(entry)

    def rate(self, step: int, rating: float) -> None:
        """Says how good the checkpoint of a validation is, the higher the better; it may be known long after."""
        self.checkpoints.rate(step, rating)
        self.host.rated(rating)

    def meta(self, step: int, data_state: dict[str, int | str]) -> dict[str, Any]:
        """What a checkpoint at `step` holds besides the arrays, JSON-able."""
        return {
            "data": data_state,
            "validation": self.validation.fingerprint,
            "judged_by": resolved_metric(self.config),
            "host": dataclasses.asdict(self.host),
            "companions": {companion.name: companion.get_state(step) for companion in self.companions},
        }

    def restore_meta(self, meta: dict[str, Any], step: int, state: Any) -> None:
        """Goes on where `meta` was called."""
        self.batches.set_state(meta["data"])
        self._check_judge(meta)
        self.host = HostState(**meta["host"])
        if isinstance(self.host.bad_steps, int):
            # A checkpoint of an earlier version, which counted them.
            self.host.bad_steps = list(range(step - self.host.bad_steps + 1, step + 1))
        for companion in self.companions:
            if companion.name in meta["companions"]:
                companion.set_state(meta["companions"][companion.name], step, state)

    def _check_judge(self, meta: dict[str, Any]) -> None:
        """Ratings of other recordings, or on another scale, cannot be held against those to come."""
        # Checkpoints of earlier versions do not say. One process that gives up alone would leave the others waiting.
        seen = meta.get("validation", self.validation.fingerprint) == self.validation.fingerprint
        if not parallel.everywhere(seen):
            raise UserError(
                f"{self.workdir}: the recordings of data.valid_clean and data.valid_noisy differ from the "
                "checkpoint's: put the old ones back, or start in a new --workdir"
            )
        mine = resolved_metric(self.config)
        there = meta.get("judged_by", mine)
        # Only the main process scores: whether PESQ is installed elsewhere does not matter.
        if not parallel.from_main_process(there == mine):
            mend = "install" if there == "wb_pesq" else "remove"
            raise UserError(
                f"{self.workdir}: its checkpoints were judged by {there}, now it would be by {mine}: {mend} the "
                "package pesq, or start in a new --workdir"
            )


def open_run(config: Config, workdir: Path, resources: contextlib.ExitStack, *, quiet: bool) -> Run:
    """Opens data and outputs; what the user got wrong, but for `train.init_from`, is told before anything is written.

    Raises:
      UserError: data that cannot be used, devices that cannot share the batch, or a workdir of another config.
    """
    config.check()
    note = check_best_metric(config)
    check_label_package(config)
    if config.train.tensorboard:
        tensorboard.check_packages()
    parallel.check_batch_size(config.train.batch_size, config.train.accumulate)
    batches = pipeline.training_batches(
        config, process_index=parallel.process_index(), process_count=parallel.process_count()
    )
    # Registered at once: recordings shared with workers outlive a process that does not free them.
    resources.callback(batches.close)
    validation = Validation(config)
    steps_per_epoch = max(1, math.ceil(pipeline.examples_per_epoch(config) / config.train.batch_size))
    total_steps = config.train.steps or config.train.epochs * steps_per_epoch
    _claim_workdir(config, workdir)
    if note and parallel.is_main_process():
        print(note, file=sys.stderr)
    checkpoints = Checkpoints(workdir, config.train.keep_best)
    resources.callback(checkpoints.close)
    run = Run(config, workdir, steps_per_epoch, total_steps, batches, validation, checkpoints, quiet)
    if config.train.tensorboard and parallel.is_main_process():
        run.observers.append(tensorboard.TensorBoard(workdir, config.stft.sample_rate_hz))
        resources.callback(run.observers[-1].close)
    return run


def _claim_workdir(config: Config, workdir: Path) -> None:
    """Makes the folder and writes the config into it; a run that is in it must have the same, but for its means."""
    make_folder(workdir)
    if (workdir / CONFIG_FILE).exists() and _has_begun(workdir):
        differences = [
            text
            for text in config_differences(read_run_config(workdir), config)
            if text.split(" ")[0] not in _MAY_CHANGE
        ]
        if differences:
            raise UserError(
                f"{workdir}: holds a run with another config; differing: {'; '.join(differences)}: use these values or "
                "another --workdir"
            )
    # Also after such a change: the file tells what the run is by now.
    if parallel.is_main_process():
        write_text(workdir / CONFIG_FILE, json.dumps(config_to_dict(config), indent=2) + "\n")


def _has_begun(workdir: Path) -> bool:
    """Whether anything was trained there; a run that failed before that leaves a config that nobody needs."""
    try:
        if (workdir / LOG_FILE).exists() and any(
            entry["event"] == "train" and "loss" in entry for entry in read_log(workdir)
        ):
            return True
    except UserError:
        return True
    return holds_checkpoints(workdir)
