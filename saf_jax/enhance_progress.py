"""What a person sees while files are enhanced."""

import sys
from types import TracebackType

from saf_jax.audio_blocks import declared_seconds
from saf_jax.enhance_jobs import Job


class EnhanceProgress:
    """A bar on stderr with the audio done, the speed in times real time and the time left; only on a terminal."""

    def __init__(self, jobs: list[Job]):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Speed(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.1f} times real time" if task.speed else "starting")

        class Done(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{_clock(task.completed)} of {_clock(task.total or 0)}")

        console = Console(stderr=True)
        shown = console.is_terminal
        self._seconds = {job: declared_seconds(job.recording) for job in jobs} if shown else {}
        self._bar = Progress(
            TextColumn("enhance"),
            BarColumn(),
            Done(),
            Speed(),
            TimeRemainingColumn(),
            console=console,
            disable=not shown,
            # Lines go above the bar where both are on the terminal; a file or pipe on stdout gets its lines itself.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            transient=True,
            speed_estimate_period=120,
        )
        self._task = self._bar.add_task("enhance", total=sum(self._seconds.values()))

    def __enter__(self) -> "EnhanceProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, seconds: float) -> None:
        """Counts seconds of audio that are done."""
        self._bar.advance(self._task, seconds)

    def skip(self, job: Job) -> None:
        """Takes a job that failed out of the sum."""
        if job in self._seconds:
            self._bar.update(self._task, total=(self._bar.tasks[0].total or 0) - self._seconds[job])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
