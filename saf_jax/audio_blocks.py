"""Audio files piece by piece: recordings of any length at bounded memory."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saf_jax.audio import check_samples, choose_container, opened
from saf_jax.errors import UserError
from saf_jax.files import atomic_path

if TYPE_CHECKING:
    import soundfile

# Large enough that calls cost nothing, small enough for libsndfile's encoders, some of which keep a piece on the stack.
PIECE_SAMPLES = 1 << 16
# What a RIFF header can count; longer wav files are written as RF64, which every current program reads.
_WAV_BYTES = 0xFFFF_FFFF - (1 << 20)
_BYTES = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "ULAW": 1,
    "ALAW": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
}


class AudioFormat(NamedTuple):
    """How the samples of a file are stored.

    Attributes:
      sample_rate_hz: samples of each channel a second.
      channels: number of channels.
      container: soundfile's name of the container, such as "WAV"; "RAW" for samples without a header.
      subtype: soundfile's name of the sample format, such as "PCM_16".
      endian: "FILE" where the container leaves no choice, else "LITTLE" or "BIG".
    """

    sample_rate_hz: int
    channels: int
    container: str = "WAV"
    subtype: str = "PCM_16"
    endian: str = "FILE"


class Recording(NamedTuple):
    """A file to read samples from.

    Attributes:
      path: the file.
      name: what messages call it.
      raw: how to read it if it has no header.
      from_pipe: whoever wrote its header did not know how many samples would follow.
    """

    path: Path
    name: str
    raw: AudioFormat | None = None
    from_pipe: bool = False


def open_recording(recording: Recording) -> contextlib.AbstractContextManager["soundfile.SoundFile"]:
    raw = recording.raw
    known: dict[str, Any] = {}
    if raw is not None:
        known = {
            "samplerate": raw.sample_rate_hz,
            "channels": raw.channels,
            "format": "RAW",
            "subtype": raw.subtype,
            "endian": raw.endian,
        }
    return opened(recording.path, name=recording.name, **known)


def read_format(recording: Recording) -> AudioFormat:
    """Reads the header.

    Raises:
      UserError: missing or not audio.
    """
    with open_recording(recording) as file:
        return AudioFormat(file.samplerate, file.channels, file.format, file.subtype, file.endian)


def declared_seconds(recording: Recording) -> float:
    """The duration that the header promises; 0 where it cannot be read."""
    try:
        with open_recording(recording) as file:
            return file.frames / file.samplerate
    except UserError:
        return 0.0


def read_pieces(recording: Recording) -> Iterator[np.ndarray]:
    """Reads a file from start to end: float32 [n, channels], full scale 1, 1 <= n <= `PIECE_SAMPLES`.

    Raises:
      UserError: as `saf_jax.audio.read`; faults that only the end of the file shows come after the last piece.
    """
    found = bad = 0
    with open_recording(recording) as file:
        declared, container = file.frames, file.format
        while len(piece := _read(file)):
            found += len(piece)
            bad += piece.size - int(np.isfinite(piece).sum())
            yield piece
    check_samples(
        recording.path,
        container,
        found,
        0 if recording.from_pipe else declared,
        bad,
        recording.name,
        recording.from_pipe,
    )


def _read(file: "soundfile.SoundFile") -> np.ndarray:
    """The next piece; unlike soundfile's `read`, without seeking, which not all files can."""
    piece = np.empty((PIECE_SAMPLES, file.channels), np.float32)
    return piece[: file.buffer_read_into(piece, dtype="float32")]


class Writer:
    """Takes the samples of a file piece by piece.

    Attributes:
      clipped: number of samples so far that were beyond full scale and that the format clips.
      peak: the largest magnitude so far.
      lost_texts: names of the text fields that the format does not take.
    """

    def __init__(self, file: "soundfile.SoundFile"):
        self._file = file
        self._clips = file.subtype not in ("FLOAT", "DOUBLE")
        self.clipped = 0
        self.peak = 0.0
        self.lost_texts: list[str] = []

    def set_text(self, name: str, text: str) -> None:
        """Sets one of soundfile's text fields, before the samples; a format without texts is no reason to fail."""
        import soundfile

        try:
            setattr(self._file, name, text)
        except soundfile.LibsndfileError:
            self.lost_texts.append(name)

    def write(self, samples: np.ndarray) -> None:
        """Appends float32 [n, channels]."""
        for start in range(0, len(samples), PIECE_SAMPLES):
            piece = samples[start : start + PIECE_SAMPLES]
            magnitudes = np.abs(piece)
            self.peak = max(self.peak, float(magnitudes.max()))
            if self._clips:
                self.clipped += int(np.count_nonzero(magnitudes > 1.0))
            self._file.write(piece)


def output_format(path: Path, given: AudioFormat, samples: int) -> AudioFormat:
    """The format of a file that is to hold a recording of format `given`.

    Container and sample format stay if the name's ending goes with them. Otherwise the ending decides, and the sample
    format stays if that container has it.

    Args:
      path: the file to be written.
      given: the format of the recording.
      samples: number of samples of each channel.

    Raises:
      UserError: the ending is no audio format.
    """
    import soundfile

    container, subtype = choose_container(path, given.container, given.subtype)
    size = samples * given.channels * _BYTES.get(subtype, 1)
    if container in ("WAV", "WAVEX") and size > _WAV_BYTES:
        container = "RF64"
    endian = given.endian if soundfile.check_format(container, subtype, given.endian) else "FILE"
    return given._replace(container=container, subtype=subtype, endian=endian)


@contextlib.contextmanager
def writing(
    path: Path, file_format: AudioFormat, texts: dict[str, str], finish: Callable[[Path], None]
) -> Iterator[Writer]:
    """Writes an audio file atomically.

    Args:
      path: the file; an existing one is replaced when the block has ended well.
      file_format: what to write.
      texts: soundfile's text fields, such as "title".
      finish: called with the temporary file when that is complete, before it becomes `path`.

    Raises:
      UserError: the format cannot hold such samples, or the file cannot be written.
    """
    import soundfile

    with atomic_path(path) as temporary:
        try:
            with soundfile.SoundFile(
                os.fsencode(temporary),
                "w",
                samplerate=file_format.sample_rate_hz,
                channels=file_format.channels,
                format=file_format.container,
                subtype=file_format.subtype,
                endian=file_format.endian,
            ) as file:
                writer = Writer(file)
                for name, text in texts.items():
                    writer.set_text(name, text)
                yield writer
        except soundfile.LibsndfileError as error:
            reason = str(error.error_string).rstrip(". ") or "this format does not take this rate or so many channels"
            raise UserError(f"{path}: cannot be written ({reason}): check the format and the free space") from error
        finish(temporary)
