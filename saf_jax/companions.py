"""What accompanies the training loop: work done beside it, whose results take effect at fixed steps."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from saf_jax.training_run import Run
    from saf_jax.training_step import TrainState


class Companion:
    """Work beside the training, such as scores of validation files or labels for a second network.

    The loop calls every method in all processes at the same steps, so that a companion may use the collectives of
    `saf_jax.parallel`. What it does to the training must follow from the steps alone, never from how fast something
    was done: a result takes effect at a fixed step and is waited for when it is late (`Delayed`). Then a run that was
    interrupted ends with the parameters of one that was not. Every method does nothing unless it is overridden.

    Attributes:
      name: its key in a checkpoint's meta data.
      rates: that it rates the checkpoints of validations (`Run.rate`); else the validation loss does.
    """

    name = ""
    rates = False

    def before_step(self, step: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """May add arrays [B, ...] to this process's part of the batch of `step` (the first is 1), on the host.

        It is called while the devices still work on the step before; what the step before resulted in is not known.
        """
        return batch

    def after_step(self, step: int, batch: dict[str, Any], result: dict[str, Any]) -> None:
        """Sees what `step` was given and resulted in: arrays on the devices that may not be ready yet."""

    def after_validation(self, step: int, state: "TrainState") -> None:
        """Called at each validation, before the checkpoint of `step` is saved; `state` is on the devices."""

    def take_results(self, run: "Run", step: int) -> None:
        """Called after each step; what is due at it takes effect: `run.log`, `run.rate`."""

    def finish(self, run: "Run") -> None:
        """Called after the last step of a training that came to its end: takes up what is not due yet."""

    def get_state(self, step: int) -> Any:
        """What a checkpoint at `step` must hold of it, JSON-able; may wait for results that are under way."""
        return None

    def set_state(self, saved: Any, step: int, state: "TrainState") -> None:
        """Goes on where `get_state` was called, from the state that the checkpoint held."""

    def close(self) -> None:
        """Ends its processes."""


class Delayed:
    """Results that are computed beside the training and taken up at fixed steps, in the order of their steps.

    Args:
      start: begins to compute the result of a task and returns a future of it; tasks and results are JSON-able.
    """

    def __init__(self, start: Callable[[Any], Future]):
        self._start = start
        self._pending: list[tuple[int, Any, Future]] = []

    def submit(self, due: int, task: Any) -> None:
        """Starts a task whose result is taken up at step `due`."""
        self._pending.append((due, task, self._start(task)))

    def take(self, step: int | None = None) -> list[tuple[Any, Any]]:
        """Pairs of task and result that are due by `step` (None: all); waits for those that are late."""
        due = [item for item in self._pending if step is None or item[0] <= step]
        self._pending = [item for item in self._pending if item not in due]
        return [(task, future.result()) for _, task, future in due]

    def get_state(self) -> list[dict[str, Any]]:
        """What is under way, JSON-able: results where they are there, else their tasks, to be done again."""
        return [
            {"due": due, "task": task, **({"result": future.result()} if future.done() else {})}
            for due, task, future in self._pending
        ]

    def set_state(self, saved: list[dict[str, Any]]) -> None:
        """Goes on with what `get_state` told."""
        self._pending = []
        for item in saved:
            if "result" in item:
                future: Future = Future()
                future.set_result(item["result"])
                self._pending.append((item["due"], item["task"], future))
            else:
                self.submit(item["due"], item["task"])
