"""The processes of a sweep's runs: one after another or several at once, each apart from the others."""

import contextlib
import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from saf_jax.errors import UserError
from saf_jax.files import explain_os_error, make_folder, user_errors

_POLL_SECONDS = 0.2
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@dataclasses.dataclass(frozen=True)
class Slot:
    """The part of the machine that a process gets.

    Attributes:
      cores: numbers of CPU cores; empty: all.
      gpu: number of its GPU; None: as the environment says.
    """

    cores: tuple[int, ...] = ()
    gpu: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A process to run.

    Attributes:
      name: for people.
      command: its words; those that name its slot are added.
      output: file that what it says is added to.
    """

    name: str
    command: tuple[str, ...]
    output: Path


@dataclasses.dataclass
class Running:
    """A process under way."""

    number: int
    task: Task
    slot: Slot
    process: subprocess.Popen
    output_start: int
    started: float


class Stop:
    """Whether somebody wants the sweep to end: SIGTERM, SIGHUP or Ctrl-C, and how often it was asked."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.count = 0

    @contextlib.contextmanager
    def watch(self) -> Iterator["Stop"]:
        """While the block runs, these signals are noted instead of ending this process."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        # A closed terminal too, but not where somebody ignores it, as nohup does.
        numbers = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
        wanted = [number for number in numbers if number and signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in wanted}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.signal, self.count = number, self.count + 1


def slots(jobs: int) -> list[Slot]:
    """Equal parts of the machine's cores and GPUs for processes side by side; all of it for one."""
    if jobs == 1:
        return [Slot()]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = _gpus()
    parts = []
    for place in range(jobs):
        mine = cores[place * len(cores) // jobs : (place + 1) * len(cores) // jobs]
        if cores and not mine:
            # More jobs than cores: they take turns on them.
            mine = [cores[place % len(cores)]]
        parts.append(Slot(tuple(mine), gpus[place % len(gpus)] if len(gpus) > 1 else None))
    return parts


def run_tasks(
    tasks: Sequence[Task],
    places: Sequence[Slot],
    stop: Stop,
    *,
    ended: Callable[[int, int, str], None],
    show: Callable[[Sequence[Running]], None],
) -> None:
    """Runs processes, as many at once as there are places, until all have ended or `stop` is set.

    A process that fails does not disturb the others. At a stop each gets SIGTERM, which lets a training save where it
    is; a second Ctrl-C kills.

    Args:
      tasks: in order.
      places: where they run.
      stop: looked at several times a second.
      ended: told of each that ended: number of the task, exit status (negative: the signal), last line that it said.
      show: told what is under way, several times a second.
    """
    waiting = list(enumerate(tasks))[::-1]
    free = list(places)[::-1]
    running: list[Running] = []
    asked = 0
    try:
        while running or (waiting and not stop.count):
            while waiting and free and not stop.count:
                number, task = waiting.pop()
                running.append(_start(number, task, free.pop()))
            for item in [item for item in running if item.process.poll() is not None]:
                running.remove(item)
                free.append(item.slot)
                item.process.stdin.close()
                ended(item.number, item.process.returncode, _last_line(item))
            if stop.count > asked:
                asked = stop.count
                for item in running:
                    item.process.send_signal(signal.SIGTERM if asked == 1 else signal.SIGKILL)
            show(running)
            time.sleep(_POLL_SECONDS)
    finally:
        # Something unforeseen happened here: leave nothing behind.
        for item in running:
            item.process.kill()
            item.process.wait()
            item.process.stdin.close()


def _start(number: int, task: Task, slot: Slot) -> Running:
    environment = dict(os.environ)
    if slot.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
    if slot.cores:
        threads = str(len(slot.cores))
        environment |= {f"{name}_NUM_THREADS": threads for name in ("OMP", "OPENBLAS", "MKL")}
    cores = ["--cores", *map(str, slot.cores)] if slot.cores else []
    make_folder(task.output.parent)
    with task.output.open("ab") as output:
        # Before the process is there, which moves this file's position as it writes.
        start = output.tell()
        process = subprocess.Popen(
            [*task.command, *cores],
            env=environment,
            # Held open by this process: when it is gone, however it went, the other ends too.
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C at a terminal is for this process alone, which passes it on.
            start_new_session=True,
        )
    return Running(number, task, slot, process, start, time.monotonic())


def _last_line(item: Running) -> str:
    """The last line that a process said, the reason of its failure if it failed."""
    try:
        with item.task.output.open("rb") as file:
            file.seek(max(item.output_start, file.seek(0, 2) - 8192))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return ""
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")


def describe_status(status: int, last_line: str) -> str:
    """Why a process failed."""
    if status < 0:
        name = signal.Signals(-status).name
        more = ": out of memory?" if -status == signal.SIGKILL else ""
        return f"killed by {name}{more}"
    return last_line or f"exit status {status}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file's lock during the block; who else wants it waits.

    On systems and file systems without such locks it does nothing but warn.
    """
    make_folder(path.parent)
    with user_errors(path):
        file = path.open("w")
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except ImportError:
            pass
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise UserError(f"cannot lock {path}: {explain_os_error(error)}") from error
            print(
                f"warning: {path}: no locks on this file system: do not start two sweeps there at once", file=sys.stderr
            )
        yield


def python_command(module: str, *arguments: str) -> tuple[str, ...]:
    """The words that run a module of this package with this Python."""
    return (sys.executable, "-m", module, *arguments)


def _gpus() -> list[str]:
    """Numbers of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [item for item in named.split(",") if item]
    folder = Path("/dev")
    return sorted(path.name[6:] for path in folder.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
