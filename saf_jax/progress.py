"""What a person sees while a training runs."""

import time
from types import TracebackType

from saf_jax import parallel


class TrainingProgress:
    """A bar with epoch, step, loss and speed on stderr; silent when told so and in all but the main process."""

    def __init__(self, total: int, start: int, steps_per_epoch: int, audio_seconds_per_step: float, quiet: bool):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._steps_per_epoch, self._audio_seconds = steps_per_epoch, audio_seconds_per_step
        self._last_step, self._last_time = start, time.monotonic()
        self._valid = ""
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=quiet or not parallel.is_main_process(),
        )
        self._task = self._bar.add_task("train", total=total, completed=start, epoch=1, loss="compiling", speed="")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Shows the mean results of the steps since the last call; returns the speed, for the log."""
        now = time.monotonic()
        speed = (step - self._last_step) * self._audio_seconds / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        self._bar.update(
            self._task,
            completed=step,
            epoch=1 + (step - 1) // self._steps_per_epoch,
            loss=f"loss {means['loss']:.4f}{self._valid}",
            speed=f"{speed:.1f} audio-s/s",
        )
        return {"audio_seconds_per_second": speed}

    def validated(self, loss: float) -> None:
        """Shows a validation loss from now on; the time it took does not count as training time."""
        self._valid = f" valid {loss:.4f}"
        self._last_time = time.monotonic()
