"""Recordings through pipes: what comes is first spooled to a file, since the level needs a pass over all of it."""

import shutil
import sys
from pathlib import Path
from typing import BinaryIO

from saf_jax.audio_blocks import AudioFormat, Recording
from saf_jax.errors import UserError
from saf_jax.files import user_errors

RAW_FORMATS = {
    "u8": "PCM_U8",
    "s8": "PCM_S8",
    "s16": "PCM_16",
    "s24": "PCM_24",
    "s32": "PCM_32",
    "f32": "FLOAT",
    "f64": "DOUBLE",
}
"""Names of raw sample formats, little-endian, and soundfile's names for them."""


def raw_format(rate: int | None, name: str | None, channels: int | None) -> AudioFormat | None:
    """The format of samples without a header, from the command's options; None if there is a header.

    Raises:
      UserError: options that say half of it.
    """
    if rate is None:
        if name is not None or channels is not None:
            raise UserError(
                "--raw-format and --raw-channels go with --raw-rate: say how many samples a second there are"
            )
        return None
    if rate < 1 or (channels is not None and channels < 1):
        raise UserError("--raw-rate and --raw-channels: must be at least 1")
    return AudioFormat(rate, channels or 1, "RAW", RAW_FORMATS[name or "s16"], "LITTLE")


def stdin_bytes() -> BinaryIO:
    """What comes on stdin; raises `UserError` if it is closed."""
    if sys.stdin is None:
        raise UserError("stdin is closed: send a recording to it, or name a file")
    return sys.stdin.buffer


def spool_stdin(folder: Path, raw: AudioFormat | None) -> Recording:
    """Writes all that comes on stdin to a file.

    Raises:
      UserError: nothing came, or there is no space for it.
    """
    path, came = folder / "stdin", stdin_bytes()
    with user_errors(path), path.open("wb") as file:
        # Not `read`, which gathers so much in a loop of its own, where Python does not see signals.
        while piece := came.read1(1 << 20):
            file.write(piece)
    if path.stat().st_size == 0:
        raise UserError("stdin: nothing came: check the command before the pipe")
    return Recording(path, "stdin", raw, from_pipe=True)


def check_stdout() -> None:
    """Raises `UserError` if audio would be written to a terminal, or to nothing."""
    if sys.stdout is None:
        raise UserError("stdout is closed: send it to a program or a file, or name a file with -o")
    if sys.stdout.isatty():
        raise UserError("stdout is a terminal: send it to a program or a file, or name a file with -o")


def copy_to_stdout(path: Path) -> None:
    """Sends a file on; a reader that goes away raises `BrokenPipeError`, as anywhere."""
    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
    sys.stdout.buffer.flush()
