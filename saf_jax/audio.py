"""Audio files: reading, writing, resampling, pairing. numpy only; what runs under jit is in `stft` and `level`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saf_jax.errors import UserError
from saf_jax.files import atomic_path, explain_os_error

SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".w64", ".rf64", ".caf"}
)
"""The file name endings that folder listings take for audio."""


class Audio(NamedTuple):
    """Samples with what is needed to write them back as they came.

    Attributes:
      samples: float32 [N, channels], full scale 1.
      sample_rate_hz: rate of `samples`.
      format: soundfile's name of the container, such as "WAV".
      subtype: soundfile's name of the sample format, such as "PCM_16".
    """

    samples: np.ndarray
    sample_rate_hz: int
    format: str = "WAV"
    subtype: str = "PCM_16"


class Pair(NamedTuple):
    """A clean recording and its noisy version, of one name."""

    name: str
    clean: Path
    noisy: Path


def read(path: str | os.PathLike, *, start: int = 0, frames: int = -1) -> Audio:
    """Reads an audio file, or `frames` samples of it from `start`.

    Args:
      path: a file that soundfile reads (wav, flac, ogg, mp3, aiff and others).
      start: first sample to read.
      frames: number of samples to read; -1 reads to the end.

    Returns:
      The samples, float32 [N, channels], with rate and format.

    Raises:
      UserError: missing, not audio, empty, truncated, or with NaN or infinite samples. The message names the file.
    """
    import soundfile

    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder where an audio file is needed")
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file: check the path")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes): record or copy it again")
        with soundfile.SoundFile(path) as file:
            if start:
                file.seek(start)
            declared = file.frames - start if frames < 0 else min(frames, file.frames - start)
            samples = file.read(frames, dtype="float32", always_2d=True)
            audio = Audio(samples, file.samplerate, file.format, file.subtype)
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).rstrip(". ")
        raise UserError(
            f"{path}: cannot be read as audio ({reason}): convert it to wav or flac, or copy it again"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {explain_os_error(error)}") from error
    if len(samples) == 0:
        raise UserError(f"{path}: holds no samples: record or copy it again")
    # Lossy formats declare their length only roughly; lossless ones hold exactly what the header says, unless cut off.
    if audio.format in ("WAV", "FLAC", "AIFF", "W64", "RF64", "WAVEX") and len(samples) < declared:
        raise UserError(
            f"{path}: truncated: the header promises {declared} samples, {len(samples)} are there: copy it again"
        )
    if audio.format in ("WAV", "WAVEX", "AIFF") and _data_chunk_is_cut(path):
        raise UserError(f"{path}: truncated: the header promises more samples than the file holds: copy it again")
    if not np.isfinite(samples).all():
        bad = int(np.size(samples) - np.isfinite(samples).sum())
        raise UserError(f"{path}: {bad} samples are NaN or infinite: export the file again")
    return audio


def _data_chunk_is_cut(path: Path) -> bool:
    """True if the chunk of samples in a wav or aiff file claims more bytes than the file has.

    libsndfile repairs the length of such files silently. Sizes of 0 and near 2**32 mean "unknown" (streams written
    through a pipe), which is not an error.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        kind = file.read(12)[:4]
        if kind not in (b"RIFF", b"FORM"):
            return False
        order, wanted = ("little", b"data") if kind == b"RIFF" else ("big", b"SSND")
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[4:], order)
            if header[:4] == wanted:
                return 0 < length < 0xFFFF_0000 and file.tell() + length > size
            file.seek(length + length % 2, os.SEEK_CUR)
    return False


def read_mono(path: str | os.PathLike, sample_rate_hz: int) -> np.ndarray:
    """Reads a file as one channel (the mean of all) at a given rate: float32 [N]."""
    audio = read(path)
    mono = audio.samples.mean(axis=1, dtype=np.float32) if audio.samples.shape[1] > 1 else audio.samples[:, 0]
    return resample(mono, audio.sample_rate_hz, sample_rate_hz)


def write(path: str | os.PathLike, audio: Audio) -> int:
    """Writes an audio file atomically, in the format that its name ends with.

    Args:
      path: the file; an existing one is replaced when the new one is complete.
      audio: samples [N] or [N, channels] with rate; `subtype` is kept if the container can hold it.

    Returns:
      The number of samples beyond full scale that an integer format had to clip.

    Raises:
      UserError: the ending is not an audio format, or the file cannot be written.
    """
    import soundfile

    path = Path(path)
    container = {".oga": "OGG", ".opus": "OGG", ".aif": "AIFF", ".aifc": "AIFF"}.get(
        path.suffix.lower(), path.suffix[1:].upper()
    )
    if container not in soundfile.available_formats():
        raise UserError(f"{path}: {path.suffix or 'a name without ending'!r} is no audio format: use .wav or .flac")
    subtype = audio.subtype
    if path.suffix.lower() == ".opus":
        subtype = "OPUS"
    elif not soundfile.check_format(container, subtype):
        subtype = soundfile.default_subtype(container)
    is_float = subtype in ("FLOAT", "DOUBLE")
    clipped = 0 if is_float else int(np.count_nonzero(np.abs(audio.samples) > 1.0))
    with atomic_path(path) as temporary:
        try:
            soundfile.write(temporary, audio.samples, audio.sample_rate_hz, subtype=subtype, format=container)
        except soundfile.LibsndfileError as error:
            reason = str(error.error_string).rstrip(". ")
            raise UserError(f"{path}: cannot be written ({reason}): check the format and the free space") from error
    return clipped


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Band-limited resampling (soxr, very high quality): [N, ...] -> [round(N * to / from), ...]."""
    if from_hz == to_hz:
        return samples
    import soxr

    return soxr.resample(samples, from_hz, to_hz, quality="VHQ").astype(np.float32, copy=False)


def list_audio(folder: str | os.PathLike) -> list[Path]:
    """All audio files below a folder, sorted; hidden files are passed over.

    Raises:
      UserError: no such folder, or no audio file in it.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder: check the path")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file where a folder of audio files is needed")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise UserError(f"{folder}: holds no audio file ({', '.join(sorted(SUFFIXES))})")
    return found


def list_pairs(clean_folder: str | os.PathLike, noisy_folder: str | os.PathLike) -> list[Pair]:
    """Pairs the files of two folders by their relative names without ending.

    Returns:
      The pairs, sorted by name.

    Raises:
      UserError: a folder is missing or empty, a file has no partner, or two of a folder have one name; names the
        first such file.
    """

    def by_name(folder: str | os.PathLike, files: Iterable[Path]) -> dict[str, Path]:
        named: dict[str, Path] = {}
        for path in files:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in named:
                raise UserError(f"{path} and {named[name]}: have the same name without ending: remove one")
            named[name] = path
        return named

    clean = by_name(clean_folder, list_audio(clean_folder))
    noisy = by_name(noisy_folder, list_audio(noisy_folder))
    for mine, theirs, other in ((clean, noisy, noisy_folder), (noisy, clean, clean_folder)):
        if alone := sorted(mine.keys() - theirs.keys()):
            more = f" ({len(alone)} such files)" if len(alone) > 1 else ""
            raise UserError(
                f"{mine[alone[0]]}: has no partner of that name in {other}{more}: add it or remove this one"
            )
    return [Pair(name, clean[name], noisy[name]) for name in sorted(clean)]
