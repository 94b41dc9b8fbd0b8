"""The training loop: batches in, checkpoints and a log out."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from saf_jax import parallel
from saf_jax.companions import Companion
from saf_jax.config import Config
from saf_jax.data import pipeline
from saf_jax.errors import UserError
from saf_jax.files import user_errors, write_text
from saf_jax.loss_gap import LossGap
from saf_jax.metric_labels import MetricLabels
from saf_jax.optimizer import learning_rate
from saf_jax.pretrained import initial_variables
from saf_jax.progress import TrainingProgress
from saf_jax.training_run import Run, open_run
from saf_jax.training_span import TrainingSpan
from saf_jax.training_step import TrainState, build_train_step, init_state
from saf_jax.validation_scoring import ValidationScores

_MAX_BAD_STEPS = 20
# How many steps may wait for the devices: enough that these never wait, few enough that a SIGTERM is soon heeded.
_STEPS_AHEAD = 2


def train_and_evaluate(config: Config, workdir: str | os.PathLike, *, quiet: bool = False) -> dict[str, Any]:
    """Trains until the config's steps or epochs are done, or until SIGTERM; called again, it resumes.

    Args:
      config: all settings.
      workdir: folder for the config, checkpoints and log; made if it is missing.
      quiet: no progress bar.

    Returns:
      "step", "steps", "valid_loss" (the last one, None before the first validation), "preempted", "stopped_early".

    Raises:
      UserError: data that cannot be used, devices that cannot share the batch, or a workdir of another config.
    """
    with contextlib.ExitStack() as resources:
        run = open_run(config, Path(workdir), resources, quiet=quiet)
        for companion in companions_of(run):
            resources.callback(companion.close)
            run.companions.append(companion)
        return _Loop(run).run()


def companions_of(run: Run) -> list[Companion]:
    """What accompanies the training by its config."""
    labels = [MetricLabels(run.config)] if run.config.loss.metric else []
    scores = [ValidationScores(run)] if run.config.train.score_files else []
    return [*labels, *scores]


class _Loop:
    """A running training: what the devices hold, the batch that is on its way to them, and where they are."""

    def __init__(self, run: Run):
        self._run, self._train = run, run.config.train
        self._train_step = parallel.map_over_devices(build_train_step(run.config), donate_state=True)
        self._state, self._step = self._start()
        alone = parallel.process_count() == 1
        self._span = TrainingSpan(
            self._train, run.total_steps, run.host.seconds, None if alone else parallel.from_main_process
        )
        self._finished = self._span.over(self._step)
        self._data_state = run.batches.get_state()
        self._results: list[dict[str, jax.Array]] = []
        self._gap = LossGap(run.config.loss)
        self._saved_at, self._saved_time = self._step, time.monotonic()

    def _start(self) -> tuple[TrainState, int]:
        """The state of the newest sound checkpoint, else a new one."""
        run = self._run
        fresh = jax.eval_shape(lambda: init_state(run.config))
        restored = run.checkpoints.restore_newest(fresh)
        if restored is None:
            variables = initial_variables(run.config)
            return parallel.put_state(parallel.on_host(lambda: init_state(run.config, variables))), 0
        step, state, meta = restored
        state = parallel.put_state(state)
        run.restore_meta(meta, step, state)
        return state, step

    def run(self) -> dict[str, Any]:
        run, total = self._run, self._run.total_steps
        audio_seconds = self._train.batch_size * run.config.data.crop_seconds
        with (
            parallel.stop_on_sigterm() as stops,
            TrainingProgress(total, self._step, run.steps_per_epoch, audio_seconds, run.quiet) as self._progress,
        ):
            run.observers.append(self._progress)
            run.log("start", step=self._step, devices=parallel.describe_devices(), jax=jax.__version__)
            batch = None if self._finished else self._next_batch()
            while not self._finished and not self._stops_early():
                with jax.transfer_guard("disallow"):
                    self._state, result = self._train_step(self._state, batch)
                self._step += 1
                if not self._span.runs:
                    if parallel.process_count() > 1:
                        # The others may still compile.
                        jax.block_until_ready(result)
                    self._span.start()
                self._finished = self._span.over(self._step)
                self._results.append(result)
                for companion in run.companions:
                    companion.after_step(self._step, batch, result)
                if len(self._results) > _STEPS_AHEAD:
                    jax.block_until_ready(self._results[-1 - _STEPS_AHEAD])
                # The devices work on the step meanwhile.
                self._data_state = run.batches.get_state()
                batch = None if self._finished else self._next_batch()
                self._after_step()
                if stops(self._step):
                    break
            return self._end()

    def _next_batch(self) -> dict[str, jax.Array]:
        """Puts the batch of the next step on the devices."""
        run = self._run
        batch = next(run.batches)
        # The positions of the examples stay on the host.
        batch = {key: batch[key] for key in ("noisy", "clean", "samples")}
        for companion in run.companions:
            batch = companion.before_step(self._step + 1, batch)
        rate = learning_rate(run.config, self._step, run.steps_per_epoch, self._span.done(self._step))
        return parallel.put_batch(batch) | {"learning_rate": parallel.put_scalar(rate)}

    def _after_step(self) -> None:
        """What is to be done at this step besides training."""
        run = self._run
        validate = self._step % run.validate_every == 0 or self._finished
        reported = len(self._results) >= self._train.log_every or validate
        if reported:
            # Only here does the host wait until the devices have nothing left to do.
            self._report()
            self._span.read_together(self._step)
        for companion in run.companions:
            companion.take_results(run, self._step)
        if validate:
            self._validate()
        if validate or (reported and self._time_to_save()):
            self._save(candidate=validate)
        if reported:
            self._span.read_together(self._step)

    def _time_to_save(self) -> bool:
        """Whether the last checkpoint is old; the main process's clock decides for all."""
        return bool(parallel.from_main_process(time.monotonic() - self._saved_time > self._train.checkpoint_seconds))

    def _report(self) -> None:
        """Fetches the results of the last steps, logs their means, and counts unusable steps in a row."""
        results = jax.device_get(self._results)
        first = self._step - len(results) + 1
        self._results = []
        good = [result for result in results if result["usable"]]
        # Without a usable step there is nothing to average, but the line still says so.
        means = {key: float(np.mean([result[key] for result in good])) for key in (good or [{}])[0] if key != "usable"}
        if good:
            self._gap.add(means, len(good))
        rate = self._progress.advance(self._step)
        self._run.log("train", step=self._step, skipped=len(results) - len(good), **means, **rate)
        for step, result in enumerate(results, first):
            self._run.host.bad_steps = [] if result["usable"] else [*self._run.host.bad_steps, step]
            if len(self._run.host.bad_steps) >= _MAX_BAD_STEPS:
                self._give_up(self._run.host.bad_steps)

    def _give_up(self, bad_steps: list[int]) -> None:
        size, path = self._train.batch_size, self._run.workdir / "bad_batch.txt"
        # A step takes the next `size` of the endless sequence of examples, whichever process makes them.
        positions = [(step - 1) * size + i for step in bad_steps for i in range(size)]
        names = pipeline.describe_examples(self._run.config, positions)
        if parallel.is_main_process():
            write_text(path, "\n".join(dict.fromkeys(names)) + "\n")
        raise UserError(
            f"{self._run.workdir}: {len(bad_steps)} steps in a row gave no usable gradient: lower "
            f"train.learning_rate or look at the files in {path}"
        )

    def _validate(self) -> None:
        run = self._run
        loss, parts = run.validation.measure(self._state)
        run.host.valid_loss = loss
        entry = {f"valid_{name}": part for name, part in parts.items()} | self._gap.take(loss, parts)
        run.log("valid", step=self._step, valid_loss=loss, **entry)
        # Not at the last step: a run that is made longer later would have halved the rate for a validation more.
        if self._train.schedule == "plateau" and self._step % run.validate_every == 0:
            factor = run.host.learning_rate_factor(loss, self._train.plateau_epochs)
            scale = np.float32(jax.device_get(self._state.learning_rate_scale) * factor)
            self._state = self._state.replace(learning_rate_scale=parallel.put_state(scale))
        for companion in run.companions:
            companion.after_validation(self._step, self._state)
        if not any(companion.rates for companion in run.companions):
            run.rate(self._step, -loss)
        self._progress.resume_clock()

    def _stops_early(self) -> bool:
        return bool(self._train.early_stop) and self._run.host.unimproved >= self._train.early_stop

    def _save(self, *, candidate: bool) -> None:
        with user_errors(self._run.workdir, "save a checkpoint in"):
            self._run.host.seconds = self._span.seconds if self._train.minutes else 0.0
            meta = self._run.meta(self._step, self._data_state)
            self._run.checkpoints.save(self._step, self._state, meta, candidate=candidate)
        self._saved_at, self._saved_time = self._step, time.monotonic()

    def _end(self) -> dict[str, Any]:
        run = self._run
        if self._results:
            self._report()
        if self._saved_at != self._step:
            self._save(candidate=False)
        stopped_early = self._stops_early()
        preempted = not self._finished and not stopped_early
        if not preempted:
            for companion in run.companions:
                companion.finish(run)
        event = "preempted" if preempted else "stopped_early" if stopped_early else "end"
        run.log(event, step=self._step, valid_loss=run.host.valid_loss)
        return {
            "step": self._step,
            "steps": run.total_steps,
            "valid_loss": run.host.valid_loss,
            "preempted": preempted,
            "stopped_early": stopped_early,
        }
