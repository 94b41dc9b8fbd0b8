"""Audio files: reading, writing, resampling, pairing. numpy only; what runs under jit is in `stft` and `level`."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saf_jax.errors import UserError
from saf_jax.files import atomic_path, explain_os_error

if TYPE_CHECKING:
    import soundfile

SUFFIXES = frozenset(
    {
        *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
        *(".aif", ".aiff", ".aifc", ".caf", ".au", ".snd", ".sph", ".nist"),
    }
)
"""The file name endings that folder listings take for audio."""


_RIFF = ("WAV", "WAVEX", "RF64")
# The containers that go by one ending, the usual one first; other endings are soundfile's names themselves.
_CONTAINERS = {
    ".wav": _RIFF,
    ".wave": _RIFF,
    ".bwf": _RIFF,
    ".aif": ("AIFF",),
    ".aifc": ("AIFF",),
    ".oga": ("OGG",),
    ".opus": ("OGG",),
    ".raw": ("RAW",),
    ".snd": ("AU",),
    ".sph": ("NIST",),
    ".nist": ("NIST",),
    ".sf": ("IRCAM",),
    ".ircam": ("IRCAM",),
    ".iff": ("SVX", "AIFF"),
    ".svx": ("SVX",),
    ".mat": ("MAT5", "MAT4"),
    ".voc": ("VOC",),
}
# Endings of audio that libsndfile does not write, or in two files (sd2): an output of such a name is meant to be a
# file, not a folder.
_FOREIGN = frozenset(
    {".m4a", ".m4b", ".mp4", ".aac", ".wma", ".webm", ".weba", ".mka", ".mp2", ".amr", ".ac3", ".ape", ".sd2", ".wv"}
)
# A thousand years at 192 kHz: libsndfile's word for "unknown" is larger.
MOST_SAMPLES = 1 << 52


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
    path = Path(path)
    with opened(path) as file:
        if start:
            file.seek(start)
        declared = file.frames - start if frames < 0 else min(frames, file.frames - start)
        # Not -1: files of some codecs cannot be told their length by seeking.
        samples = file.read(declared, dtype="float32", always_2d=True)
        audio = Audio(samples, file.samplerate, file.format, file.subtype)
    check_samples(path, audio.format, len(samples), declared, samples.size - int(np.isfinite(samples).sum()))
    return audio


@contextlib.contextmanager
def opened(path: str | os.PathLike, name: str = "", **raw: Any) -> Iterator["soundfile.SoundFile"]:
    """Opens an audio file for reading.

    Args:
      path: the file.
      name: what messages call it instead of its path.
      raw: what `soundfile.SoundFile` must be told of a file without header.

    Raises:
      UserError: missing, a folder, empty or not audio, also where that turns out inside the block; names the file.
    """
    import soundfile

    path = Path(path)
    name = name or str(path)
    if path.is_dir():
        raise UserError(f"{name}: is a folder where an audio file is needed")
    try:
        if not path.exists():
            raise UserError(f"{name}: no such file: check the path")
        if path.is_fifo():
            raise UserError(f"{name}: is a pipe, not a file: send it to stdin, which saf-jax enhance knows as -")
        if path.stat().st_size == 0:
            raise UserError(f"{name}: the file is empty (0 bytes): record or copy it again")
        # Bytes, since names need not be UTF-8.
        with soundfile.SoundFile(os.fsencode(path), **raw) as file:
            if file.frames > MOST_SAMPLES:
                raise UserError(f"{name}: its header does not say how long it is: convert it to wav, or to flac anew")
            yield file
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).rstrip(". ")
        raise UserError(
            f"{name}: cannot be read as audio ({reason}): convert it to wav or flac, or copy it again"
        ) from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {explain_os_error(error)}") from error


def check_samples(
    path: Path, container: str, found: int, declared: int, bad: int, name: str = "", from_pipe: bool = False
) -> None:
    """Raises `UserError` for a file that was read to its end and is empty, cut off or has samples that are no numbers.

    Args:
      path: the file.
      container: soundfile's name of it.
      found: number of samples of each channel that it held.
      declared: number that its header promises.
      bad: how many samples are NaN or infinite.
      name: what messages call it instead of its path.
      from_pipe: it was written before its length was known, to a pipe.
    """
    name = name or str(path)
    if found == 0:
        raise UserError(f"{name}: holds no samples: record or copy it again")
    # Lossy formats declare their length only roughly; lossless ones hold exactly what the header says, unless cut off.
    if container in ("WAV", "FLAC", "AIFF", "W64", "RF64", "WAVEX") and found < declared:
        raise UserError(f"{name}: truncated: the header promises {declared} samples, {found} are there: copy it again")
    if container in ("WAV", "WAVEX", "AIFF") and _data_chunk_is_cut(path, from_pipe):
        raise UserError(f"{name}: truncated: the header promises more samples than the file holds: copy it again")
    if bad:
        raise UserError(f"{name}: {bad} samples are NaN or infinite: export the file again")


def _data_chunk_is_cut(path: Path, from_pipe: bool) -> bool:
    """True if the chunk of samples in a wav or aiff file claims more bytes than the file has.

    libsndfile repairs the length of such files silently. Sizes of 0 and near 2**32 mean "unknown" (streams written
    through a pipe), which is not an error; in a pipe itself some programs write sizes near 2**31.
    """
    unknown = 0x7FFF_0000 if from_pipe else 0xFFFF_0000
    size = path.stat().st_size
    with path.open("rb") as file:
        kind = file.read(12)[:4]
        if kind not in (b"RIFF", b"FORM"):
            return False
        order, wanted = ("little", b"data") if kind == b"RIFF" else ("big", b"SSND")
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[4:], order)
            if header[:4] == wanted:
                return 0 < length < unknown and file.tell() + length > size
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
    container, subtype = choose_container(path, audio.format, audio.subtype)
    is_float = subtype in ("FLOAT", "DOUBLE")
    clipped = 0 if is_float else int(np.count_nonzero(np.abs(audio.samples) > 1.0))
    with atomic_path(path) as temporary:
        try:
            soundfile.write(
                os.fsencode(temporary), audio.samples, audio.sample_rate_hz, subtype=subtype, format=container
            )
        except soundfile.LibsndfileError as error:
            reason = str(error.error_string).rstrip(". ")
            raise UserError(f"{path}: cannot be written ({reason}): check the format and the free space") from error
    return clipped


def choose_container(path: Path, container: str, subtype: str) -> tuple[str, str]:
    """Container and sample format, as soundfile names them, for a file whose recording came in the given ones.

    Both stay if the name's ending goes with them; otherwise the ending decides, and the sample format stays if it can.

    Raises:
      UserError: the ending is not an audio format.
    """
    import soundfile

    choices = containers_of(path)
    if container not in choices:
        container = choices[0]
    if path.suffix.lower() == ".opus":
        subtype = "OPUS"
    # libsndfile takes MPEG layers for formats of wav as well, and for layers I and II of mp3, yet writes none of them.
    elif subtype.startswith("MPEG_LAYER") or not soundfile.check_format(container, subtype):
        subtype = soundfile.default_subtype(container)
    return container, subtype


def containers_of(path: Path) -> tuple[str, ...]:
    """The containers, as soundfile names them, that can be written under a name: the usual one first.

    Raises:
      UserError: the name's ending is not an audio format, or one that can only be read.
    """
    import soundfile

    suffix = path.suffix.lower()
    choices = _CONTAINERS.get(suffix, (suffix[1:].upper(),))
    if suffix in _FOREIGN or choices[0] not in soundfile.available_formats():
        raise UserError(
            f"{path}: {path.suffix or 'a name without ending'!r} is no audio format that can be written: "
            "use .wav or .flac"
        )
    return choices


def names_audio(path: Path) -> bool:
    """True if a name ends like that of an audio file, also of one that cannot be written."""
    return path.suffix.lower() in SUFFIXES | _CONTAINERS.keys() | _FOREIGN


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Band-limited resampling (soxr, very high quality): [N, ...] -> [round(N * to / from), ...]."""
    if from_hz == to_hz:
        return samples
    import soxr

    return soxr.resample(samples, from_hz, to_hz, quality="VHQ").astype(np.float32, copy=False)


def list_audio(folder: str | os.PathLike) -> list[Path]:
    """All audio files below a folder, sorted; hidden files and folders are passed over, links followed.

    Raises:
      UserError: no such folder, or no audio file in it.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder: check the path")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file where a folder of audio files is needed")
    found = sorted(path for path in visible_files(folder) if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{folder}: holds no audio file ({', '.join(sorted(SUFFIXES))})")
    return found


def visible_files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Whatever is no folder and not hidden; a link to a folder that holds it is not followed, nor what may not be read.

    Args:
      folder: where to look.
      above: real paths of the folders that led here.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            # `Path.is_dir` also answers for links in a circle; the entry itself knows without asking the disk.
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                yield from visible_files(path, (*above, real))
            else:
                yield path


def named_files(folder: str | os.PathLike) -> dict[str, Path]:
    """All audio files below a folder by their relative names without ending.

    Raises:
      UserError: no such folder, no audio file in it, or two of one name.
    """
    named: dict[str, Path] = {}
    for path in list_audio(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise UserError(f"{path} and {named[name]}: have the same name without ending: remove one")
        named[name] = path
    return named


def list_pairs(clean_folder: str | os.PathLike, noisy_folder: str | os.PathLike) -> list[Pair]:
    """Pairs the files of two folders by their relative names without ending.

    Returns:
      The pairs, sorted by name.

    Raises:
      UserError: a folder is missing or empty, a file has no partner, or two of a folder have one name; names the
        first such file.
    """
    clean, noisy = named_files(clean_folder), named_files(noisy_folder)
    for mine, theirs, other in ((clean, noisy, noisy_folder), (noisy, clean, clean_folder)):
        if alone := sorted(mine.keys() - theirs.keys()):
            more = f" ({len(alone)} such files)" if len(alone) > 1 else ""
            raise UserError(
                f"{mine[alone[0]]}: has no partner of that name in {other}{more}: add it or remove this one"
            )
    return [Pair(name, clean[name], noisy[name]) for name in sorted(clean)]
