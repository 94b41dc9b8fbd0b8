"""The training loop: batches in, checkpoints and a log out."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from saf_jax import parallel
from saf_jax.checkpoint import CONFIG_FILE, Checkpoints, read_run_config
from saf_jax.config import Config, config_differences, config_to_dict
from saf_jax.data import pipeline
from saf_jax.errors import UserError
from saf_jax.files import make_folder, user_errors, write_text
from saf_jax.losses import weighted_sum
from saf_jax.progress import TrainingProgress
from saf_jax.training_step import TrainState, build_train_step, build_validation_step, init_state

LOG_FILE = "log.jsonl"
LOG_EVERY = 20
# Settings that a resumed run may change: they say how long and with what means, not what is trained.
_MAY_CHANGE = (
    "train.epochs", "train.steps", "train.checkpoint_seconds", "train.keep_best",
    "data.workers", "data.cache_gb", "data.cache_folder",
)  # fmt: skip
_MAX_BAD_STEPS = 20


@dataclasses.dataclass
class Plateau:
    """Halves the learning rate when the validation loss has not fallen for a number of validations (DB-AIAT).

    Attributes:
      best: lowest validation loss so far.
      waited: validations since then.
    """

    best: float = math.inf
    waited: int = 0

    def update(self, loss: float, patience: int) -> float:
        """Takes a validation loss; returns the factor for the learning rate, 1 or 0.5."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return 1.0
        self.waited += 1
        if self.waited < patience:
            return 1.0
        self.waited = 0
        return 0.5


def train_and_evaluate(config: Config, workdir: str | os.PathLike, *, quiet: bool = False) -> dict[str, Any]:
    """Trains until the config's steps or epochs are done, or until SIGTERM; called again, it resumes.

    Args:
      config: all settings.
      workdir: folder for the config, checkpoints and log; made if it is missing.
      quiet: no progress bar.

    Returns:
      "step", "steps", "valid_loss" (the last one, None before the first validation), "preempted".

    Raises:
      UserError: data that cannot be used, devices that cannot share the batch, or a workdir of another config.
    """
    config.check()
    parallel.check_batch_size(config.train.batch_size)
    with contextlib.ExitStack() as resources:
        batches = pipeline.training_batches(
            config, process_index=parallel.process_index(), process_count=parallel.process_count()
        )
        # Registered at once: recordings shared with workers outlive a process that does not free them.
        resources.callback(batches.close)
        validation = _validation_batches(config)
        steps_per_epoch = max(1, math.ceil(pipeline.examples_per_epoch(config) / config.train.batch_size))
        total_steps = config.train.steps or config.train.epochs * steps_per_epoch
        workdir = _claim_workdir(config, Path(workdir))
        checkpoints = Checkpoints(workdir, config.train.keep_best)
        resources.callback(checkpoints.close)
        return _Loop(config, workdir, checkpoints, batches, validation, steps_per_epoch, total_steps, quiet).run()


class _Loop:
    """State of a running training: what the device holds and what the host remembers beside it."""

    def __init__(self, config, workdir, checkpoints, batches, validation, steps_per_epoch, total_steps, quiet):
        self.config, self.workdir, self.checkpoints = config, workdir, checkpoints
        self.batches, self.validation = batches, validation
        self.steps_per_epoch, self.total_steps, self.quiet = steps_per_epoch, total_steps, quiet
        self.plateau = Plateau()
        self.valid_loss: float | None = None
        self.stop_requested = threading.Event()
        self.train_step = parallel.map_over_devices(build_train_step(config, total_steps), donate_state=True)
        self.validation_step = parallel.map_over_devices(build_validation_step(config))
        self.state, self.step = self._start()

    def _start(self) -> tuple[TrainState, int]:
        state = jax.jit(lambda: init_state(self.config))()
        restored = self.checkpoints.restore_newest(state)
        if restored is None:
            return state, 0
        step, state, meta = restored
        self.batches.set_state(meta["data"])
        self.plateau = Plateau(math.inf if meta["best"] is None else meta["best"], meta["waited"])
        self.valid_loss = meta["valid_loss"]
        return state, step

    def run(self) -> dict[str, Any]:
        every = self.config.train.validate_every or self.steps_per_epoch
        audio_seconds = self.config.train.batch_size * self.config.data.crop_seconds
        saved_at, last_save, bad = self.step, time.monotonic(), 0
        waiting: list[tuple[int, dict[str, jax.Array]]] = []
        with (
            _on_sigterm(self.stop_requested),
            TrainingProgress(self.total_steps, self.step, self.steps_per_epoch, audio_seconds, self.quiet) as progress,
            self._open_log() as log,
        ):
            self._log(log, event="start", step=self.step, devices=parallel.describe_devices(), jax=jax.__version__)
            while self.step < self.total_steps and not self.stop_requested.is_set():
                batch = next(self.batches)
                self.state, result = self.train_step(self.state, parallel.split_batch(_arrays(batch)))
                self.step += 1
                waiting.append((self.step, result))
                validate = self.step % every == 0 or self.step == self.total_steps
                if len(waiting) >= LOG_EVERY or validate:
                    # Only here does the host wait for the devices.
                    bad = self._report(log, progress, waiting, bad, batch)
                    waiting = []
                if validate:
                    self._validate(log, progress)
                if validate or time.monotonic() - last_save > self.config.train.checkpoint_seconds:
                    self._save(self.valid_loss if validate else None)
                    saved_at, last_save = self.step, time.monotonic()
            if saved_at != self.step:
                self._save(None)
            preempted = self.step < self.total_steps
            self._log(log, event="preempted" if preempted else "end", step=self.step, valid_loss=self.valid_loss)
        return {"step": self.step, "steps": self.total_steps, "valid_loss": self.valid_loss, "preempted": preempted}

    def _report(self, log: Any, progress: TrainingProgress, waiting: list, bad: int, batch: dict) -> int:
        """Fetches the results of the last steps, logs their means, and counts unusable steps in a row."""
        fetched = [(step, {key: float(value) for key, value in result.items()}) for step, result in waiting]
        good = [result for _, result in fetched if result["finite"]]
        for _, result in fetched:
            bad = 0 if result["finite"] else bad + 1
        if good:
            means = {key: float(np.mean([result[key] for result in good])) for key in good[0] if key != "finite"}
            rate = progress.advance(self.step, means)
            self._log(log, event="train", step=self.step, skipped=len(fetched) - len(good), **means, **rate)
        if bad >= _MAX_BAD_STEPS:
            names = pipeline.describe_examples(self.config, batch["index"])
            write_text(self.workdir / "bad_batch.txt", "\n".join(names) + "\n")
            raise UserError(
                f"{self.workdir}: {bad} steps in a row gave no finite gradient: lower train.learning_rate or look at "
                f"the files in {self.workdir / 'bad_batch.txt'}"
            )
        return bad

    def _validate(self, log: Any, progress: TrainingProgress) -> None:
        sums: dict[str, Any] = {}
        for batch in self.validation:
            _, terms = self.validation_step(self.state, parallel.split_batch(batch))
            sums = jax.tree.map(lambda a, b: a + b, sums, terms) if sums else terms
        if not sums:
            return
        self.valid_loss = float(weighted_sum(sums, self.config.loss))
        parts = {f"valid_{name}": float(term.total / term.count) for name, term in sums.items()}
        self._log(log, event="valid", step=self.step, valid_loss=self.valid_loss, **parts)
        progress.validated(self.valid_loss)
        if self.config.train.schedule == "plateau":
            factor = self.plateau.update(self.valid_loss, self.config.train.plateau_epochs)
            self.state = self.state.replace(learning_rate_scale=self.state.learning_rate_scale * factor)

    def _save(self, valid_loss: float | None) -> None:
        meta = {
            "data": self.batches.get_state(),
            "best": self.plateau.best if math.isfinite(self.plateau.best) else None,
            "waited": self.plateau.waited,
            "valid_loss": self.valid_loss,
        }
        with user_errors(self.workdir, "save a checkpoint in"):
            self.checkpoints.save(self.step, self.state, meta, valid_loss)

    def _open_log(self) -> Any:
        with user_errors(self.workdir / LOG_FILE):
            return (self.workdir / LOG_FILE).open("a", encoding="utf-8", buffering=1)

    def _log(self, log: Any, **entry: Any) -> None:
        if parallel.is_main_process():
            log.write(json.dumps({"time": round(time.time(), 3), **entry}) + "\n")


def _arrays(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the step needs of a batch; the example indices stay on the host."""
    return {key: batch[key] for key in ("noisy", "clean", "samples")}


def _claim_workdir(config: Config, workdir: Path) -> Path:
    """Makes the folder and writes the config into it, or checks that the one in it is the same."""
    make_folder(workdir)
    if (workdir / CONFIG_FILE).exists():
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
    elif parallel.is_main_process():
        write_text(workdir / CONFIG_FILE, json.dumps(config_to_dict(config), indent=2) + "\n")
    return workdir


def _validation_batches(config: Config) -> list[dict[str, np.ndarray]]:
    """The validation pairs cut into crops of one length, so that one compiled program serves all."""
    size = round(config.data.crop_seconds * config.stft.sample_rate_hz)
    crops = []
    for pair in pipeline.validation_pairs(config):
        for start in range(0, len(pair.noisy), size):
            noisy, clean = pair.noisy[start : start + size], pair.clean[start : start + size]
            fill = (0, size - len(noisy))
            crops.append((np.pad(noisy, fill), np.pad(clean, fill), len(noisy)))
    count = config.train.batch_size // parallel.process_count()
    # Every process must make the same number of calls: the crops are dealt out in turn and the last batches filled up
    # with empty ones, which count nothing.
    empty = (np.zeros(size, np.float32), np.zeros(size, np.float32), 0)
    crops += [empty] * (-len(crops) % (count * parallel.process_count()))
    mine = crops[parallel.process_index() :: parallel.process_count()]
    return [
        {
            "noisy": np.stack([crop[0] for crop in part]).astype(np.float32),
            "clean": np.stack([crop[1] for crop in part]).astype(np.float32),
            "samples": np.array([crop[2] for crop in part], np.int32),
        }
        for part in (mine[i : i + count] for i in range(0, len(mine), count))
    ]


class _on_sigterm:
    """While the block runs, SIGTERM sets an event instead of ending the process (preemption)."""

    def __init__(self, event: threading.Event):
        self._event, self._previous = event, None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, lambda *_: self._event.set())

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
