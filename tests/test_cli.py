import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

import saf_jax
from saf_jax import cli
from saf_jax.cli import COMMANDS, main
from saf_jax.errors import UserError


class Command:
    """A command module whose `run` does what it is told."""

    def __init__(self, do):
        self.do = do

    def add_arguments(self, parser):
        parser.add_argument("--level", type=int, default=1)

    def run(self, args):
        return self.do(args)


@pytest.fixture
def command(monkeypatch):
    """Puts a command `try` into the table that calls the given function."""

    def install(do):
        monkeypatch.setitem(sys.modules, "saf_jax_try", Command(do))
        monkeypatch.setitem(COMMANDS, "try", ("saf_jax_try", "a command of the tests"))

    return install


def test_status_and_arguments_go_through(command):
    command(lambda args: args.level)
    assert main(["try", "--level", "7"]) == 7


def test_a_users_error_is_one_line_and_status_2(command, capsys):
    def fail(args):
        raise UserError("a\nfile: is bad: mend it")

    command(fail)
    assert main(["try"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: a file: is bad: mend it\n")


def test_a_fault_of_ours_keeps_its_traceback(command):
    command(lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["try"])


def test_ctrl_c_stops_without_a_traceback(command, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    command(interrupt)
    assert main(["try"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"saf-jax {saf_jax.__version__}\n"


def test_without_a_command_it_prints_its_help(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("argv", [["enhnace", "a"], ["info"], ["info", "--config", "paper", "--weights", "x"]])
def test_wrong_usage_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    assert "usage: saf-jax" in capsys.readouterr().out


PRINTING = """
import sys, types
from saf_jax import cli
command = types.ModuleType("command")
command.add_arguments = lambda parser: None
command.run = lambda args: print("a † line") or 0
sys.modules["command"] = command
cli.COMMANDS["try"] = ("command", "a command")
sys.stdin.read()
sys.exit(cli.main(["try"]))
"""


def test_signs_that_stdout_lacks_are_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", PRINTING], input=b"", capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a \\u2020 line\n", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_one_line(unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTING], input=b"", stdout=full, stderr=subprocess.PIPE, env=environment
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: cannot write the output: no space left") and done.stderr.count(b"\n") == 1


def test_a_closed_stdout_is_no_error(command, monkeypatch):
    command(lambda args: print("a line") or 0)
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["try"]) == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(unbuffered):
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    process.stdout.close()
    process.stdin.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (141, b"")


def test_light_modules_load_nothing_heavy():
    heavy = "jax flax optax orbax grain librosa scipy soundfile soxr matplotlib pesq pystoi rich jinja2 safetensors"
    code = f"""
import sys
import saf_jax, saf_jax.cli, saf_jax.config, saf_jax.files, saf_jax.audio, saf_jax.errors, saf_jax.enhance_command
import saf_jax.pretrained, saf_jax.info, saf_jax.training_command
saf_jax.load_config("paper")
loaded = [name for name in "{heavy}".split() if name in sys.modules]
raise SystemExit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there():
    for name in saf_jax.__all__:
        assert getattr(saf_jax, name) is not None
    assert set(saf_jax.__all__) <= set(dir(saf_jax))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = saf_jax.nothing
    assert saf_jax.stft.__module__ == "saf_jax.transforms"
    assert cli.main is main


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_ended_from_outside_a_command_leaves_no_recording_behind(tmp_path, name):
    """What came on stdin is kept in a temporary folder meanwhile."""
    command = [sys.executable, "-m", "saf_jax", "enhance", "-", "-o", tmp_path / "out.wav"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdin.write(bytes(200_000))
        process.stdin.flush()
        until = time.monotonic() + 60
        while not any(tmp_path.glob("saf_jax.*/*")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        # Not at the very moment before it begins to wait for more.
        time.sleep(0.3)
        for _ in range(4):
            process.send_signal(getattr(signal, name))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
                break
        assert process.returncode == 128 + getattr(signal, name)
        assert b"Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []
