"""Many recordings at one rate, as one channel, decoded once: in memory, in shared memory, or in mapped files."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from saf_jax import audio
from saf_jax.data.progress_bar import track
from saf_jax.errors import UserError
from saf_jax.files import atomic_path, explain_os_error, make_folder, user_errors, write_text
from saf_jax.worker_processes import usable_cores


class Storage:
    """Opens sets of recordings that share a budget of memory."""

    def __init__(
        self,
        sample_rate_hz: int,
        *,
        cache_bytes: float = 8e9,
        cache_folder: str | os.PathLike = "",
        shared: bool = False,
    ):
        """Says how recordings are kept.

        Args:
          sample_rate_hz: rate to resample to.
          cache_bytes: memory for all sets together; sets that need more are decoded at every read.
          cache_folder: folder for mapped files that later runs use again; they may be of any size.
          shared: other processes will read: keep one copy for all.
        """
        self.sample_rate_hz = sample_rate_hz
        self.cache_bytes = cache_bytes
        self.cache_folder = cache_folder
        self.shared = shared

    def open(self, files: Sequence[Path]) -> "Recordings":
        """Decodes the files as far as the budget reaches, else looks at their headers.

        Raises:
          UserError: a file is missing, damaged, empty or holds NaN; names it.
        """
        recordings = Recordings(files, self)
        if recordings.cached and not self.cache_folder:
            self.cache_bytes -= recordings.memory_bytes
        return recordings


class Recordings:
    """Recordings that are read by number: `recordings.read(i, start, count)`; made by `Storage.open`.

    They can be sent to other processes: recordings in shared memory and mapped files travel as a path.

    Attributes:
      files: the files, in the given order.
      sample_rate_hz: rate that they are read at.
      lengths: int64 [files], samples of each at that rate.
      memory_bytes: memory that all of them take when decoded.
    """

    def __init__(self, files: Sequence[Path], storage: Storage):
        self.files = tuple(Path(file) for file in files)
        self.sample_rate_hz = storage.sample_rate_hz
        self.lengths, sizes = _probe_all(self.files, self.sample_rate_hz)
        self.memory_bytes = int(sizes.sum())
        self._arrays: list[np.ndarray] | None = None
        self._mapped = ""
        self._layout = np.zeros((0, 3), np.int64)
        self._holder = None
        if storage.cache_folder:
            self._map_cache_file(Path(storage.cache_folder))
        elif self.memory_bytes > storage.cache_bytes:
            return
        elif storage.shared:
            self._holder, self._mapped = _shared_file()
            self._layout = _write_pack(self._holder, self._decode())
            self._holder.flush()
        else:
            self._arrays = list(self._decode())

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        """Changes with the files' names, order and lengths, not with the folders that they lie in."""
        listing = [[file.name, length] for file, length in zip(self.files, self.lengths.tolist())]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]

    @property
    def cached(self) -> bool:
        """True if reading needs no decoding."""
        return self._arrays is not None or bool(self._mapped)

    def read(self, number: int, start: int = 0, count: int | None = None) -> np.ndarray:
        """Samples `start` to `start + count` of a recording, fewer at its end: float32 [count].

        Raises:
          UserError: the recording is decoded anew and has been damaged or removed meanwhile.
        """
        if self._mapped and self._arrays is None:
            self._open_map()
        if self._arrays is not None:
            stop = None if count is None else start + count
            piece = self._arrays[number][start:stop]
            return piece * np.float32(1 / 32768) if piece.dtype == np.int16 else np.array(piece)
        end = int(self.lengths[number])
        count = end - start if count is None else min(count, end - start)
        return self._read_file(number, start, count) if count > 0 else np.empty(0, np.float32)

    def close(self) -> None:
        """Frees shared memory; the recordings cannot be read any more."""
        self._arrays = None
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def __getstate__(self) -> dict:
        state = dict(self.__dict__, _holder=None)
        if self._mapped:
            state["_arrays"] = None
        return state

    def _read_file(self, number: int, start: int, count: int) -> np.ndarray:
        path = self.files[number]
        if _header(path)[1] == self.sample_rate_hz:
            return _fit(_one_channel(audio.read(path, start=start, frames=count).samples), count, path)
        return _fit(audio.read_mono(path, self.sample_rate_hz), int(self.lengths[number]), path)[start : start + count]

    def _decode(self) -> Iterator[np.ndarray]:
        """All recordings in order, decoded on all cores: int16 where that loses nothing, else float32."""

        def decode(path: Path, length: int) -> np.ndarray:
            recording = audio.read(path)
            mono = _one_channel(recording.samples)
            exact = recording.subtype in ("PCM_16", "PCM_S8", "PCM_U8") and recording.samples.shape[1] == 1
            if exact and recording.sample_rate_hz == self.sample_rate_hz:
                return _fit(np.rint(mono * 32768).astype(np.int16), length, path)
            return _fit(audio.resample(mono, recording.sample_rate_hz, self.sample_rate_hz), length, path)

        with ThreadPoolExecutor(usable_cores()) as pool:
            waiting = []
            # Not pool.map: it would decode far ahead of a slow disk and hold everything in memory.
            for path, length in track(zip(self.files, self.lengths.tolist()), "reading recordings", len(self.files)):
                waiting.append(pool.submit(decode, path, length))
                if len(waiting) > 4 * usable_cores():
                    yield waiting.pop(0).result()
            for job in waiting:
                yield job.result()

    def _map_cache_file(self, folder: Path) -> None:
        key = json.dumps([1, self.sample_rate_hz, [_identity(path) for path in self.files]]).encode()
        name = hashlib.sha256(key).hexdigest()[:32]
        samples, table = make_folder(folder) / f"{name}.samples", folder / f"{name}.json"
        layout = None
        with contextlib.suppress(OSError, ValueError):
            layout = np.array(json.loads(table.read_text()), np.int64).reshape(-1, 3)
            if layout[:, 1].tolist() != self.lengths.tolist() or samples.stat().st_size != _pack_bytes(layout):
                layout = None
        if layout is None:
            with user_errors(samples), atomic_path(samples) as partial, partial.open("wb") as file:
                layout = _write_pack(file, self._decode())
            # The table comes last: with it the pair counts as finished.
            write_text(table, json.dumps(layout.tolist()))
        self._layout, self._mapped = layout, str(samples)

    def _open_map(self) -> None:
        try:
            raw = np.memmap(self._mapped, np.uint8, "r") if _pack_bytes(self._layout) else np.empty(0, np.uint8)
        except OSError as error:
            raise UserError(f"{self._mapped}: cannot be read: {explain_os_error(error)}") from error
        self._arrays = [
            raw[offset : offset + length * size].view(np.int16 if size == 2 else np.float32)
            for offset, length, size in self._layout
        ]


def _write_pack(file, arrays: Iterator[np.ndarray]) -> np.ndarray:
    """Writes arrays one after the other, each at a multiple of 4 bytes: rows of offset, length, bytes a sample."""
    rows, offset = [], 0
    for array in arrays:
        rows.append((offset, len(array), array.itemsize))
        data = array.tobytes()
        file.write(data + bytes(-len(data) % 4))
        offset += len(data) + -len(data) % 4
    return np.array(rows, np.int64).reshape(-1, 3)


def _pack_bytes(layout: np.ndarray) -> int:
    return int((-(-layout[:, 1] * layout[:, 2] // 4) * 4).sum())


def _shared_file():
    """A file that other processes can open and that vanishes with this one: (file object, its path)."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            file = os.fdopen(os.memfd_create("saf-jax-recordings"), "wb")
            path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            if os.access(path, os.R_OK):
                return file, path
            file.close()
    file = tempfile.NamedTemporaryFile(prefix="saf-jax-recordings-", suffix=".samples")  # noqa: SIM115
    return file, file.name


def _one_channel(samples: np.ndarray) -> np.ndarray:
    """[N, channels] -> [N], the mean of all."""
    return samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]


def _identity(path: Path) -> list:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {explain_os_error(error)}") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _fit(samples: np.ndarray, length: int, path: Path) -> np.ndarray:
    """Trims or pads to the length that the header promises; what lacks more than 1 % is an error."""
    if len(samples) < 0.99 * length - 1000:
        raise UserError(f"{path}: truncated: {length} samples expected, {len(samples)} are there: copy it again")
    return samples[:length] if len(samples) >= length else np.pad(samples, (0, length - len(samples)))


def _header(path: Path) -> tuple[int, int, bool]:
    """Samples, rate, and whether int16 holds the recording without loss.

    Raises:
      UserError: the file cannot be read; the full reader says why.
    """
    import soundfile

    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError):
        recording = audio.read(path)
        return len(recording.samples), recording.sample_rate_hz, False
    # More than a thousand years: libsndfile's word for a header that does not say.
    if not 0 < info.frames <= audio.MOST_SAMPLES:
        return len(audio.read(path).samples), info.samplerate, False
    return info.frames, info.samplerate, info.channels == 1 and info.subtype in ("PCM_16", "PCM_S8", "PCM_U8")


def _probe_all(files: Sequence[Path], sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of each file at a rate, and bytes that it takes in memory, from the headers."""
    lengths, sizes = [], []
    for path in files:
        frames, rate, exact = _header(path)
        lengths.append(round(frames * sample_rate_hz / rate))
        if not lengths[-1]:
            raise UserError(f"{path}: is shorter than a sample at {sample_rate_hz} Hz: take it out of the folder")
        sizes.append(lengths[-1] * (2 if exact and rate == sample_rate_hz else 4))
    return np.array(lengths, np.int64), np.array(sizes, np.int64)
