"""The processes of a sweep's runs, played by small scripts."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saf_jax import sweep_processes
from saf_jax.errors import UserError
from saf_jax.sweep_processes import Slot, Stop, Task, describe_status, locked, run_tasks, slots

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tasks(tmp_path):
    """Makes tasks of Python programs; one may use `out`, a folder of its own, and the imports here."""

    def make(*programs):
        made = []
        for number, program in enumerate(programs):
            folder = tmp_path / "out" / str(number)
            code = f"import os, pathlib, signal, sys, time\nout = pathlib.Path({str(folder)!r})\n{program}"
            made.append(Task(f"task {number}", (sys.executable, "-I", "-S", "-c", code), folder / "output.txt"))
        return made

    return make


@pytest.fixture
def run():
    """Runs tasks; returns what `ended` was told, in order, and the largest number of tasks under way at once."""

    def call(tasks, places=None, stop=None, show=lambda running: None):
        told, most = [], 0

        def shown(running):
            nonlocal most
            most = max(most, len(running))
            show(running)

        run_tasks(tasks, places or (Slot(),), stop or Stop(), ended=lambda *what: told.append(what), show=shown)
        return told, most

    return call


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sweep_processes, "_POLL_SECONDS", 0.02)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_one_after_another_and_what_they_said(tasks, run, tmp_path):
    told, most = run(tasks("print('a'); print('b')", "sys.exit('bad luck')", "pass", "os.kill(os.getpid(), 9)"))
    assert told == [(0, 0, "b"), (1, 1, "bad luck"), (2, 0, ""), (3, -9, "")] and most == 1
    assert (tmp_path / "out" / "0" / "output.txt").read_text() == "a\nb\n"


def test_what_a_process_says_before_its_start_is_noted_counts(tasks, run, monkeypatch):
    class Ended(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.wait()

    monkeypatch.setattr(subprocess, "Popen", Ended)
    (told,), _ = run(tasks("print('quick')"))
    assert told == (0, 0, "quick")


def test_a_users_error_says_more_than_what_follows_it(tasks, run):
    (told,), _ = run(tasks("print('error: no such folder'); print('goodbye'); sys.exit(2)"))
    assert told == (0, 2, "no such folder")


def test_output_of_a_second_try_is_added_and_only_its_end_counts(tasks, run, tmp_path):
    first = tasks("print('error: old')")
    run(first)
    (told,), _ = run([Task("again", tasks("pass")[0].command, first[0].output)])
    assert told == (0, 0, "") and "old" in first[0].output.read_text()


def test_as_many_at_once_as_there_are_places(tasks, run):
    told, most = run(tasks(*["time.sleep(0.3)"] * 5), places=[Slot(), Slot()])
    assert sorted(number for number, *_ in told) == [0, 1, 2, 3, 4] and most == 2


def test_each_gets_the_cores_and_the_gpu_of_its_place(tasks, run):
    told, _ = run(
        tasks("print(sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])"),
        places=[Slot((2, 3), "1")],
    )
    assert told == [(0, 0, "['--cores', '2', '3'] 2 1")]


def test_a_stop_ends_what_runs_and_begins_nothing_more(tasks, run):
    patient = (
        "print('up', flush=True); signal.signal(15, lambda *_: sys.exit(75)); (out / 'up').touch(); time.sleep(60)"
    )
    made, stop = tasks(patient, patient, "print('never')"), Stop()

    def show(running):
        if all((item.task.output.parent / "up").exists() for item in running):
            stop.signal, stop.count = signal.SIGTERM, 1

    told, _ = run(made, [Slot(), Slot()], stop, show)
    assert sorted(told) == [(0, 75, "up"), (1, 75, "up")]
    assert not made[2].output.exists()


def test_a_second_ctrl_c_kills(tasks, run):
    stop = Stop()

    def show(running):
        if (running[0].task.output.parent / "up").exists() if running else False:
            stop.count = min(2, stop.count + 1)

    stubborn = "signal.signal(15, signal.SIG_IGN); (out / 'up').touch(); time.sleep(60)"
    assert run(tasks(stubborn), stop=stop, show=show)[0] == [(0, -signal.SIGKILL, "")]


def test_signals_are_noted_while_a_stop_watches():
    stop, before = Stop(), signal.getsignal(signal.SIGTERM)
    with stop.watch():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert (stop.signal, stop.count) == (signal.SIGINT, 2) and signal.getsignal(signal.SIGTERM) is before


def test_a_fault_of_ours_leaves_nothing_behind(tasks):
    (task,) = tasks("time.sleep(60)")
    under_way = []

    def show(running):
        under_way.extend(running)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_tasks([task], [Slot()], Stop(), ended=lambda *_: None, show=show)
    assert under_way[0].process.returncode == -signal.SIGKILL


def test_a_run_ends_when_the_sweep_is_killed(tmp_path):
    """The child watches its stdin, as a run does, and saves where it is when that is closed."""
    child = (
        "import pathlib, signal, sys, time\n"
        "from saf_jax.sweep_child import _end_with_parent\n"
        f"out = pathlib.Path({str(tmp_path)!r})\n"
        "signal.signal(15, lambda *_: ((out / 'saved').touch(), sys.exit(75)))\n"
        "_end_with_parent()\n(out / 'up').touch()\ntime.sleep(60)\n"
    )
    parent = (
        "import pathlib, sys\n"
        "from saf_jax.sweep_processes import Slot, Stop, Task, run_tasks\n"
        f"task = Task('child', (sys.executable, '-c', {child!r}), pathlib.Path({str(tmp_path / 'output.txt')!r}))\n"
        "run_tasks([task], [Slot()], Stop(), ended=lambda *_: None, show=lambda _: None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT)
    try:
        wait_for((tmp_path / "up").exists)
        assert not (tmp_path / "saved").exists()
    finally:
        process.kill()
        process.wait()
    wait_for((tmp_path / "saved").exists)


def test_a_lock_is_waited_for(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from saf_jax.sweep_processes import locked\n"
        "print('wants', flush=True)\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('has', flush=True)\n"
    )
    path = tmp_path / "deep" / ".lock"
    with locked(path):
        command = [sys.executable, "-c", code, path]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "wants\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    assert process.communicate(timeout=60)[0] == "has\n" and process.returncode == 0


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, capsys):
    def refuse(error):
        def flock(file, operation):
            raise OSError(error, os.strerror(error))

        return flock

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    with locked(tmp_path / ".lock"):
        pass
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path / '.lock'}: no locks") and len(said.splitlines()) == 1
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(UserError, match=r"cannot lock .*\.lock"), locked(tmp_path / ".lock"):
        pytest.fail("not locked")


def test_places_share_the_cores_and_the_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {8, 9, 10, 11, 12}, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert slots(1) == [Slot()]
    assert slots(2) == [Slot((8, 9), "4"), Slot((10, 11, 12), "7")]
    assert [slot.gpu for slot in slots(3)] == ["4", "7", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert [slot.gpu for slot in slots(2)] == [None, None]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    places = [slot.cores for slot in slots(5)]
    assert {core for cores in places for core in cores} == {0, 1} and all(len(cores) == 1 for cores in places)


@pytest.mark.parametrize(
    ("status", "line", "text"),
    [
        (2, "model.heads=5: must divide", "model.heads=5: must divide"),
        (3, "", "exit status 3"),
        (-9, "whatever", "killed by SIGKILL: out of memory?"),
        (-11, "", "killed by SIGSEGV"),
    ],
)
def test_reasons_in_words(status, line, text):
    assert describe_status(status, line) == text


def test_the_words_of_a_command_go_through_as_they_are(run, tmp_path):
    words = ["--set", "a.b=[1, 2]", 'c.d="x y"', "$HOME"]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    (told,), _ = run([Task("echo", (sys.executable, "-I", "-S", "-c", code, *words), tmp_path / "output.txt")])
    assert json.loads(told[2]) == words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_is_a_stop_too(number):
    stop = Stop()
    with stop.watch():
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    assert (stop.count, stop.signal) == (1, number)
