"""What accompanies the training loop: work done beside it, whose results take effect at fixed steps."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from saf_jax.training_run import Run
    from saf_jax.training_step import TrainState


class Companion:
    """Work beside the training, such as scores of validation files or labels for a second network.

    The loop calls every method in all processes at the same steps, so that a companion may use the collectives of
    `saf_jax.parallel`. What it does to the training must follow from the steps alone, never from how fast something
    was done: a result takes effect at a fixed step and is waited for when it is late. Then a run that was
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
