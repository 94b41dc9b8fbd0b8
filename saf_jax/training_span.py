"""How far a training is: by its steps or by the clock."""

import time
from collections.abc import Callable

from saf_jax.config import TrainConfig


class TrainingSpan:
    """The part of a training that is done; where `train.minutes` is set, what is further of steps and clock counts.

    The clock is to start with the end of the first step's compilation. One process reads it whenever it is asked. More
    of them must end at the same step and fall by the same rates: they read the main process's clock together, now and
    then, and in between count each step as long as those before the last reading were.

    Args:
      train: the settings.
      total_steps: after which the training ends in any case.
      seconds: that earlier calls of the same training took.
      from_main_process: gives the main process's number to all that ask together; None for a process that is alone.
    """

    def __init__(
        self,
        train: TrainConfig,
        total_steps: int,
        seconds: float = 0.0,
        from_main_process: Callable[[float], float] | None = None,
    ):
        self._train, self._total = train, total_steps
        self._earlier, self._started = seconds, None
        self._from_main_process = from_main_process
        # Of the last common reading, and what a step took before it.
        self._read_step, self._read_seconds, self._step_seconds = None, seconds, 0.0

    @property
    def runs(self) -> bool:
        """Whether the clock was started."""
        return self._started is not None

    def start(self) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """What the clock of this process shows, earlier calls included."""
        return self._earlier + (0.0 if self._started is None else time.monotonic() - self._started)

    def read_together(self, step: int) -> None:
        """Where there is a clock for several processes, reads it: all call this at the same steps, `step` steps done.

        Before and after whatever is no training: what lies between two readings at one step is nobody's step.
        """
        if self._from_main_process is None or not self._train.minutes:
            return
        seconds = float(self._from_main_process(self.seconds))
        if self._read_step is not None and step > self._read_step:
            self._step_seconds = (seconds - self._read_seconds) / (step - self._read_step)
        self._read_step, self._read_seconds = step, seconds

    def done(self, step: int) -> float:
        """Part of the training that is done with `step` steps, counted from the end of the warm-up: for "cosine"."""
        warmup = self._train.warmup_steps
        by_steps = (step - warmup) / max(1, self._total - warmup)
        return max(by_steps, self._by_clock(step))

    def over(self, step: int) -> bool:
        """Whether the training ends with `step` steps."""
        return step >= self._total or self._by_clock(step) >= 1.0

    def _by_clock(self, step: int) -> float:
        if not self._train.minutes:
            return 0.0
        seconds = self.seconds
        if self._from_main_process is not None:
            since = 0 if self._read_step is None else step - self._read_step
            seconds = self._read_seconds + since * self._step_seconds
        return seconds / (60 * self._train.minutes)
