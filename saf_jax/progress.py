"""What a person sees while a training runs."""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from saf_jax import parallel
from saf_jax.observers import Observer

# Shown elsewhere on the bar, or of no use there.
_NOT_PARTS = ("unix_seconds", "event", "step", "skipped", "loss", "audio_seconds_per_second", "device_memory_gb")


class TrainingProgress(Observer):
    """A bar on stderr with two lines; silent when told so and in all but the main process.

    The first: epoch, steps, loss, seconds of audio per second, device memory, time spent and left. The second: the
    parts of the loss, and what the last validation found.

    Args:
      total: steps of the whole training.
      start: steps done before.
      steps_per_epoch: for the epoch's number.
      audio_seconds_per_step: in a batch.
      quiet: no bar.
    """

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
        from rich.text import Text

        self._steps_per_epoch, self._audio_seconds = steps_per_epoch, audio_seconds_per_step
        self._last_step, self._last_time = start, time.monotonic()
        self._parts, self._validation = "", ""
        second_line = self._second_line

        class TwoLines(Progress):
            def get_renderables(self) -> Iterable[Any]:
                yield from super().get_renderables()
                yield Text(second_line(), style="dim", no_wrap=True, overflow="ellipsis")

        self._bar = TwoLines(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            # A line of the log may take minutes on a small machine: the time left is that of all lines since.
            speed_estimate_period=600,
            disable=quiet or not parallel.is_main_process(),
        )
        epoch = 1 + start // steps_per_epoch
        self._task = self._bar.add_task("train", total=total, completed=start, epoch=epoch, loss="compiling", speed="")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, step: int) -> dict[str, float]:
        """Notes that the steps up to `step` are done; returns speed and memory, for the log."""
        now = time.monotonic()
        speed = (step - self._last_step) * self._audio_seconds / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        memory = parallel.device_memory_gb()
        self._bar.update(
            self._task,
            completed=step,
            epoch=1 + (step - 1) // self._steps_per_epoch,
            speed=f"{speed:.1f} audio-s/s" + ("" if memory is None else f" {memory:.1f} GB"),
        )
        return {"audio_seconds_per_second": speed} | ({} if memory is None else {"device_memory_gb": memory})

    def resume_clock(self) -> None:
        """Leaves the time since the last `advance` out of the speed: it went into something else than steps."""
        self._last_time = time.monotonic()

    def show(self, entry: dict[str, Any]) -> None:
        """Takes an entry of the log."""
        if entry["event"] == "train":
            self._bar.update(self._task, loss=f"loss {entry['loss']:.4f}" if "loss" in entry else "no usable step")
            self._parts = _listed(entry)
        elif entry["event"] == "valid":
            gap = f" gap {entry['gap']:+.4f}" if "gap" in entry else ""
            self._validation = f" | step {entry['step']}: valid {entry['valid_loss']:.4f}{gap}"
        elif entry["event"] == "scores":
            scores = _listed({name: value for name, value in entry.items() if not name.startswith("noisy_")})
            self._validation += f" | {scores}"

    def _second_line(self) -> str:
        return self._parts + self._validation


def _listed(entry: dict[str, Any]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in entry.items() if name not in _NOT_PARTS)
