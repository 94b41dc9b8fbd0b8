"""Voice Bank + DEMAND: from the official archives to 16 kHz files in folders, with a manifest from the official logs.

References:
  C. Valentini-Botinhao, "Noisy speech database for training speech enhancement algorithms and TTS models", University
  of Edinburgh, https://doi.org/10.7488/ds/2117 (CC BY 4.0).
"""

import contextlib
import io
import shutil
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saf_jax import audio
from saf_jax.data.manifest import FILE_NAME, check_manifest, read_manifest, write_manifest
from saf_jax.data.progress_bar import track
from saf_jax.errors import UserError
from saf_jax.files import atomic_path, explain_os_error, make_folder
from saf_jax.worker_processes import usable_cores

BASE_URL = "https://datashare.ed.ac.uk/bitstream/handle/10283/2791"
PAGE_URL = "https://datashare.ed.ac.uk/handle/10283/2791"
SPEECH = {
    ("train", "clean"): "clean_trainset_28spk_wav",
    ("train", "noisy"): "noisy_trainset_28spk_wav",
    ("test", "clean"): "clean_testset_wav",
    ("test", "noisy"): "noisy_testset_wav",
}
LOGS = {"train": "log_trainset_28spk.txt", "test": "log_testset.txt"}
LOG_ARCHIVE = "logfiles"
ARCHIVES = tuple(f"{name}.zip" for name in (*SPEECH.values(), LOG_ARCHIVE))
APPROXIMATE_BYTES = 5_300_000_000
"""The official archives together, where the server does not say."""
VALIDATION_SPEAKERS = ("p226", "p287")
OFFICIAL_PAIRS = {"train": 11572, "test": 824}
COLUMNS = ("file", "clean_file", "speaker", "split", "noise", "snr_db", "seconds")
"""Columns of the manifest; `file` is the noisy one, relative to the manifest."""
_SAMPLE_RATE_HZ = 16000
_LARGEST_FILE_BYTES = 100_000_000


class Condition(NamedTuple):
    """What an official log says of a file."""

    noise: str
    snr_db: float


class _Wave(NamedTuple):
    """One file of an archive or folder."""

    source: "Source"
    entry: str


class Source:
    """An official archive, or the folder that it unpacks to: files by their names without ending."""

    def __init__(self, path: Path):
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        if path.is_dir():
            found = {file.relative_to(path).as_posix(): file for file in audio.visible_files(path) if file.is_file()}
            self._sizes = {name: file.stat().st_size for name, file in found.items()}
        else:
            try:
                self._archive = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise UserError(f"{path}: is no complete zip archive ({error}): delete it and call again") from error
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {explain_os_error(error)}") from error
            self._sizes = {entry.filename: entry.file_size for entry in self._archive.infolist() if not entry.is_dir()}

    def entries(self, suffixes: Iterable[str]) -> dict[str, str]:
        """Entries by the file's own name without ending. Their folders are never used for writing.

        Raises:
          UserError: two entries have the same name.
        """
        found: dict[str, str] = {}
        for entry in sorted(self._sizes):
            parts = entry.replace("\\", "/").split("/")
            # Archives made on a Mac carry a shadow of each file.
            if "__MACOSX" in parts or parts[-1].startswith(".") or Path(parts[-1]).suffix.lower() not in suffixes:
                continue
            stem = Path(parts[-1]).stem
            if stem in found:
                raise UserError(f"{self.path}: holds {stem} twice ({found[stem]}, {entry}): remove one")
            found[stem] = entry
        return found

    def total_bytes(self) -> int:
        """Bytes of all files, unpacked."""
        return sum(self._sizes.values())

    def read(self, entry: str) -> bytes:
        """The content of a file.

        Raises:
          UserError: it is damaged; names archive and entry.
        """
        if self._sizes[entry] > _LARGEST_FILE_BYTES:
            raise UserError(f"{self.path}: {entry} claims {self._sizes[entry] / 1e9:.1f} GB: this is not the corpus")
        try:
            if self._archive is None:
                return (self.path / entry).read_bytes()
            return self._archive.read(entry)
        except Exception as error:
            # A checksum, the decompressor, the end of the file: there is no common base class.
            reason = explain_os_error(error) if isinstance(error, OSError) else str(error)
            raise UserError(f"{self.path}: {entry} is damaged ({reason}): delete the archive and call again") from error

    def close(self) -> None:
        """Closes the archive."""
        if self._archive is not None:
            self._archive.close()


def open_sources(folder: Path) -> dict[str, Source]:
    """The four sets of speech and the logs in a folder, zipped or unpacked, by their official names.

    Raises:
      UserError: one is missing or no zip archive.
    """
    sources = {}
    for name in (*SPEECH.values(), LOG_ARCHIVE):
        path = next((path for path in (folder / f"{name}.zip", folder / name) if path.exists()), None)
        if path is None and name == LOG_ARCHIVE and all((folder / log).is_file() for log in LOGS.values()):
            path = folder
        if path is None:
            raise UserError(f"{folder / name}.zip: no such file: fetch it from {PAGE_URL}")
        sources[name] = Source(path)
    return sources


def parse_log(text: str, where: str) -> dict[str, Condition]:
    """Reads an official log: lines such as "p232_001 bus 17.5".

    Raises:
      UserError: a line has another form, or a file occurs twice; names the line.
    """
    conditions: dict[str, Condition] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        name = words[0].removesuffix(".wav")
        try:
            if len(words) != 3:
                raise ValueError
            condition = Condition(words[1], float(words[2]))
        except ValueError as error:
            raise UserError(f"{where}: line {number} is not 'file noise snr': {line.strip()!r}") from error
        if name in conditions:
            raise UserError(f"{where}: line {number} names {name} a second time")
        conditions[name] = condition
    return conditions


def prepare(root: Path, sources: dict[str, Source], *, audio_format: str = "flac", jobs: int = 0) -> dict[str, int]:
    """Converts all files to 16 kHz and writes `root/manifest.csv`.

    Files go to `root/{train,valid,test}/{clean,noisy}`; the speakers p226 and p287 of the training set are the
    validation set. What is there already stays; the manifest comes last.

    Args:
      root: the new corpus.
      sources: from `open_sources`.
      audio_format: "flac" or "wav", 16 bit.
      jobs: threads; 0 for one a core.

    Returns:
      The number of pairs in each split.

    Raises:
      UserError: an archive or a file in it is damaged, the parts do not fit together, or the disk is full.
    """
    check_manifest(root / FILE_NAME, COLUMNS)
    conditions, waves = {}, {}
    for split, log in LOGS.items():
        logs = sources[LOG_ARCHIVE].entries({".txt"})
        if Path(log).stem not in logs:
            raise UserError(f"{sources[LOG_ARCHIVE].path}: holds no {log}: fetch the archive again from {PAGE_URL}")
        text = sources[LOG_ARCHIVE].read(logs[Path(log).stem]).decode("utf-8", errors="replace")
        conditions[split] = parse_log(text, f"{sources[LOG_ARCHIVE].path}: {log}")
        for kind in ("clean", "noisy"):
            source = sources[SPEECH[split, kind]]
            entries = source.entries(audio.SUFFIXES)
            if not entries:
                raise UserError(f"{source.path}: holds no audio file: fetch it again from {PAGE_URL}")
            waves[split, kind] = {name: _Wave(source, entry) for name, entry in entries.items()}
        _check_names(split, waves, conditions[split], sources)
    work = []
    for (split, kind), named in waves.items():
        for name, wave in named.items():
            target = root / _split(split, name) / kind / f"{name}.{audio_format}"
            work.append((target, wave))
    lengths = _convert_all(work, jobs)
    rows, counts = [], {"train": 0, "valid": 0, "test": 0}
    for split in LOGS:
        for name in sorted(waves[split, "clean"]):
            part = _split(split, name)
            clean, noisy = (root / part / kind / f"{name}.{audio_format}" for kind in ("clean", "noisy"))
            if lengths[clean] != lengths[noisy]:
                raise UserError(
                    f"{name}: clean has {lengths[clean]} samples, noisy {lengths[noisy]}: one archive is damaged"
                )
            condition = conditions[split][name]
            rows.append(
                (
                    noisy.relative_to(root).as_posix(),
                    clean.relative_to(root).as_posix(),
                    name.partition("_")[0],
                    part,
                    condition.noise,
                    f"{condition.snr_db:g}",
                    f"{lengths[clean] / _SAMPLE_RATE_HZ:.3f}",
                )
            )
            counts[part] += 1
    write_manifest(root / FILE_NAME, COLUMNS, rows)
    return counts


def finished(root: Path) -> dict[str, int] | None:
    """Pairs in each split of a corpus that is complete, else None."""
    if not (root / FILE_NAME).is_file():
        return None
    counts = {"train": 0, "valid": 0, "test": 0}
    with contextlib.suppress(UserError):
        for row in read_manifest(root / FILE_NAME, COLUMNS):
            if (
                row["split"] not in counts
                or not (root / row["file"]).is_file()
                or not (root / row["clean_file"]).is_file()
            ):
                return None
            counts[row["split"]] += 1
        return counts
    return None


def check_space(root: Path, needed_bytes: int, doing: str) -> None:
    """Compares what is needed with what is free.

    Raises:
      UserError: less is free; says how much.
    """
    free = shutil.disk_usage(make_folder(root)).free
    if needed_bytes > free:
        raise UserError(
            f"{root}: {doing} needs about {needed_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: free some space "
            "or choose another --root"
        )


def output_bytes(sources: dict[str, Source], audio_format: str) -> int:
    """About what the converted files will take: a third of 48 kHz wav, and flac about half of that."""
    total = sum(source.total_bytes() for name, source in sources.items() if name != LOG_ARCHIVE)
    return round(total / 3 * (0.6 if audio_format == "flac" else 1.0))


def _split(split: str, name: str) -> str:
    return "valid" if split == "train" and name.partition("_")[0] in VALIDATION_SPEAKERS else split


def _check_names(split: str, waves: dict, conditions: dict[str, Condition], sources: dict[str, Source]) -> None:
    clean, noisy = waves[split, "clean"], waves[split, "noisy"]
    paths = {kind: sources[SPEECH[split, kind]].path for kind in ("clean", "noisy")}
    for mine, theirs, here, there in ((clean, noisy, "clean", "noisy"), (noisy, clean, "noisy", "clean")):
        if alone := sorted(mine.keys() - theirs.keys()):
            raise UserError(f"{paths[here]}: {alone[0]} has no partner in {paths[there]}: fetch both archives again")
    if unknown := sorted(clean.keys() - conditions.keys()):
        raise UserError(f"{sources[LOG_ARCHIVE].path}: {LOGS[split]} does not name {unknown[0]}: fetch the logs again")


def _convert_all(work: list[tuple[Path, _Wave]], jobs: int) -> dict[Path, int]:
    """Converts what is not there yet; returns the samples of every file."""
    import soundfile

    lengths, waiting = {}, []
    for target, wave in work:
        try:
            lengths[target] = soundfile.info(target).frames
        except (soundfile.LibsndfileError, OSError):
            waiting.append((target, wave))
    if not waiting:
        return lengths
    with ThreadPoolExecutor(jobs or usable_cores()) as pool:
        running = {pool.submit(_convert, target, wave): target for target, wave in waiting}
        try:
            for done in track(as_completed(running), "converting", len(running)):
                lengths[running[done]] = done.result()
        except BaseException:
            # What has not begun shall not begin: the user waits for the message.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return lengths


def _convert(target: Path, wave: _Wave) -> int:
    """Resamples one file; returns its samples."""
    import soundfile

    where = f"{wave.source.path}: {wave.entry}"
    data = wave.source.read(wave.entry)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            promised, rate = file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).rstrip(". ")
        raise UserError(f"{where} cannot be read as audio ({reason}): fetch the archive again") from error
    if len(samples) == 0 or len(samples) < promised:
        raise UserError(f"{where} is empty or cut off: fetch the archive again")
    if not np.isfinite(samples).all():
        raise UserError(f"{where} holds NaN or infinite samples: fetch the archive again")
    mono = audio.resample(samples.mean(axis=1, dtype=np.float32), rate, _SAMPLE_RATE_HZ)
    # Encoded in memory and written in one go: libsndfile does not tell of a full disk.
    encoded = io.BytesIO()
    soundfile.write(encoded, np.clip(mono, -1, 1), _SAMPLE_RATE_HZ, subtype="PCM_16", format=target.suffix[1:].upper())
    with atomic_path(target) as partial:
        partial.write_bytes(encoded.getvalue())
    return len(mono)
