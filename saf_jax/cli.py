"""The command line: `saf-jax X`, `python -m saf_jax X`, and the scripts `train.py` and `eval.py`."""

import argparse
import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from saf_jax.errors import UserError
from saf_jax.files import explain_os_error
from saf_jax.jax_defects import avoid_fft_deadlock

# Each module offers `add_arguments(parser)` and `run(args) -> exit status`. It is imported only when its command is
# called, so that `saf-jax --help` and the light commands do not wait for jax.
COMMANDS = {
    "enhance": ("saf_jax.enhance_command", "take the noise out of recordings"),
    "train": ("saf_jax.training_command", "train a network (the same as train.py); called again, it resumes"),
    "train-cost": ("saf_jax.train_cost", "hours, memory and speed of a training, from a few measured steps"),
    "sweep": ("saf_jax.sweep_command", "train and score a table of settings with several seeds, and compare its rows"),
    "eval": ("saf_jax.evaluation", "score enhanced speech with the field's metrics (the same as eval.py)"),
    "report": ("saf_jax.report", "one HTML page about an evaluation or a training run: tables, curves, sounds"),
    "compare": ("saf_jax.compare", "evaluations side by side, with paired differences: did a change help?"),
    "info": ("saf_jax.info", "parameters, cost, STFT and receptive field of a config or of weights"),
    "weights": ("saf_jax.weights_command", "the networks that come with the package; --recommend measures them here"),
    "export": ("saf_jax.export", "a network for other runtimes: safetensors, StableHLO, ONNX"),
    "prepare": ("saf_jax.data.prepare_command", "make training data: Voice Bank + DEMAND, or any folders"),
    "mix": ("saf_jax.data.mix_command", "write a fixed test set of speech in noise at stated ratios"),
    "demo": ("saf_jax.demo", "the whole job on an embedded corpus: train, evaluate, enhance"),
}

# What only writing meets.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser with all commands, and the arguments of the one that is called."""
    parser = argparse.ArgumentParser(prog="saf-jax", description="Speech enhancement with Spectrum Attention Fusion.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, help_line) in COMMANDS.items():
        command = commands.add_parser(name, help=help_line, description=help_line[0].upper() + help_line[1:] + ".")
        if name == chosen:
            importlib.import_module(module).add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      Exit status: 0 success, 1 some of the files failed, 2 a user's error, told in one line on stderr, 130 on Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _print_anything()
    parser = build_parser(next((word for word in argv if not word.startswith("-")), None))
    args = parser.parse_args(argv)
    if args.version:
        from saf_jax.version import __version__

        print(f"saf-jax {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    avoid_fft_deadlock()
    try:
        with _unwinding():
            status = importlib.import_module(COMMANDS[args.command][0]).run(args)
        # Buffered output meets a closed pipe when it is flushed: here, not at the interpreter's exit.
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except UserError as error:
        # One line whatever the message holds: names of files may contain line breaks.
        print("error: " + " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error.
        _let_go_of_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        # Files are written under guards of their own, which make it a `UserError`: this is what stdout goes to.
        if error.errno not in _FULL or error.filename is not None:
            raise
        _let_go_of_stdout()
        print(f"error: cannot write the output: {explain_os_error(error)}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _unwinding() -> Iterator[None]:
    """Ended from outside (`kill`, `timeout`, a closed terminal), a command still removes what it has half written.

    Training and sweeps have handlers of their own inside, which let them save.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")):
            # Not where somebody ignores it, as nohup does.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _print_anything() -> None:
    """Lets names of files that are not UTF-8, and signs that a terminal's encoding lacks, be printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _let_go_of_stdout() -> None:
    """Keeps the interpreter from flushing, at its exit, what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
