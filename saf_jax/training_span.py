"""How far a training is: by its steps or by the clock."""

import time

from saf_jax.config import TrainConfig


class TrainingSpan:
    """The part of a training that is done; where `train.minutes` is set, what is further of steps and clock counts.

    The clock starts with the end of the first step's compilation.

    Args:
      train: the settings.
      total_steps: after which the training ends in any case.
      seconds: that earlier calls of the same training took.
    """

    def __init__(self, train: TrainConfig, total_steps: int, seconds: float = 0.0):
        self._train, self._total = train, total_steps
        self._earlier, self._started = seconds, None

    def start(self) -> None:
        """Starts the clock, if it does not run yet."""
        if self._started is None:
            self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """What the clock shows, earlier calls included."""
        return self._earlier + (0.0 if self._started is None else time.monotonic() - self._started)

    def done(self, step: int) -> float:
        """Part of the training that is done with `step` steps, counted from the end of the warm-up: for "cosine"."""
        warmup = self._train.warmup_steps
        by_steps = (step - warmup) / max(1, self._total - warmup)
        return max(by_steps, self._by_clock())

    def over(self, step: int) -> bool:
        """Whether the training ends with `step` steps."""
        return step >= self._total or self._by_clock() >= 1.0

    def _by_clock(self) -> float:
        return self.seconds / (60 * self._train.minutes) if self._train.minutes else 0.0
