"""What a person sees of a sweep: a bar for all runs, a line for each that is under way."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from saf_jax.sweep_processes import Running
from saf_jax.sweep_runs import RECORD_FILE, PlannedRun, last_entry

_LOOK_SECONDS = 1.0


class SweepProgress:
    """Lines on stderr: a live display on a terminal, else one line for each run that begins or ends.

    Args:
      todo: the runs, by number of their task.
      done_before: runs that are done already or are not this call's.
      total: all runs of the sweep.
    """

    def __init__(self, todo: Sequence[PlannedRun], *, done_before: int, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._todo = todo
        self._begun: set[int] = set()
        self._lines: dict[int, int] = {}
        self._looked = 0.0
        self._console = Console(stderr=True)
        self._live = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._all = self._bar.add_task("runs", total=total, completed=done_before, what="")

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, running: Sequence[Running]) -> None:
        """Takes what is under way."""
        for item in running:
            if item.number not in self._begun:
                self._begun.add(item.number)
                run = self._todo[item.number]
                self._lines[item.number] = self._bar.add_task(run.name, total=run.config.train.steps or None, what="")
                if not self._live:
                    self._say(f"{run.name}: begun ({run.folder.name})")
        if self._live and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            for item in running:
                self._look(item.number)

    def ended(self, run: PlannedRun, done: bool, reason: str | None) -> None:
        """Takes the end of a run."""
        number = self._todo.index(run)
        if number in self._lines:
            self._bar.remove_task(self._lines.pop(number))
        if done:
            self._bar.advance(self._all)
        self._say(f"{run.name}: {'done' if done else f'failed: {reason}' if reason else 'stopped'}")

    def _look(self, number: int) -> None:
        folder = self._todo[number].folder
        entry = last_entry(folder)
        if (folder / RECORD_FILE).is_file():
            what = "scoring"
        elif entry is None or entry["event"] == "start":
            what = "starting"
        else:
            loss = entry.get("loss", entry.get("valid_loss"))
            what = "" if loss is None else f"loss {loss:.4f}"
        self._bar.update(self._lines[number], completed=entry["step"] if entry else 0, what=what)

    def _say(self, line: str) -> None:
        if self._live:
            self._console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)
