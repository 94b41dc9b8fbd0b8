"""Single training examples: crops of pairs, and mixtures made of pools of speech, noise and rooms."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saf_jax import audio
from saf_jax.config import Config
from saf_jax.data import noises
from saf_jax.data.active_level import active_level_db
from saf_jax.data.manifest import read_manifest
from saf_jax.data.mixing import change_speed, draw_mixture, without_offset
from saf_jax.data.recordings import Recordings, Storage
from saf_jax.errors import UserError

_LARGEST_MISMATCH = 0.01
# Rooms longer than this add cost, not realism: the rest of their sound is far below speech.
_LONGEST_ROOM_SECONDS = 2.0
# A piece of speech whose loudest frame lies so far below the active level of its recording is a pause. Brought to the
# level of speech, its hiss would be a target.
_PAUSE_DB, _FRAME_SECONDS = 20.0, 0.02
_PLACES = 16
# Of a longer recording, so much of it tells the level.
_PIECES, _PIECE_SECONDS = 12, 5


class Example(NamedTuple):
    """One training example, float32 [N] each, and what it was made of."""

    clean: np.ndarray
    noisy: np.ndarray
    sources: str


class Crops:
    """Which part of which recording an example is.

    A recording gives as many examples per epoch as crops fit into it (at least one), each from its own stretch of the
    recording, so that long recordings are heard as thoroughly as short ones.
    """

    def __init__(self, lengths: np.ndarray, crop_samples: int):
        self._lengths = lengths
        self._crop_samples = crop_samples
        self._counts = np.maximum(1, np.round(lengths / crop_samples).astype(np.int64))
        self._ends = np.cumsum(self._counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def draw(self, rng: np.random.Generator, number: int, samples: int = 0) -> tuple[int, int, int]:
        """Recording, first sample and number of samples of example `number` of an epoch.

        Args:
          rng: source of the draw of the place.
          number: of the example.
          samples: wanted number of samples, if other than the crop's.
        """
        number = number % len(self)
        file = int(np.searchsorted(self._ends, number, side="right"))
        count = int(min(self._lengths[file], samples or self._crop_samples))
        room = int(self._lengths[file]) - count
        parts = int(self._counts[file])
        part = number - int(self._ends[file]) + parts
        low, high = room * part // parts, room * (part + 1) // parts
        return file, int(rng.integers(low, high + 1)), count


class PairedExamples:
    """Crops of clean recordings and of their noisy versions."""

    def __init__(self, pairs: list[audio.Pair], storage: Storage, crop_samples: int, seed: int):
        self._clean = storage.open([pair.clean for pair in pairs])
        self._noisy = storage.open([pair.noisy for pair in pairs])
        lengths = [common_length(*both) for both in zip(pairs, self._clean.lengths, self._noisy.lengths)]
        self._crops = Crops(np.array(lengths, np.int64), crop_samples)
        self._seed = seed

    def __len__(self) -> int:
        return len(self._crops)

    def fingerprint(self) -> str:
        """Changes with the recordings."""
        return f"{self._clean.fingerprint()}-{self._noisy.fingerprint()}"

    def make(self, position: int, number: int) -> Example:
        """Example `number` of an epoch, at `position` of the endless sequence."""
        rng = np.random.default_rng([self._seed, 1, position])
        file, start, count = self._crops.draw(rng, number)
        return Example(
            self._clean.read(file, start, count),
            self._noisy.read(file, start, count),
            f"{self._clean.files[file]} + {self._noisy.files[file]}",
        )

    def close(self) -> None:
        """Frees the recordings."""
        self._clean.close()
        self._noisy.close()


class MixedExamples:
    """Mixtures of the recordings that `data.train_clean`, `train_noise` and `train_rir` name."""

    def __init__(self, config: Config, storage: Storage, crop_samples: int):
        data = config.data
        self._mixing = config.mixing
        self._rate = config.stft.sample_rate_hz
        self._seed = config.train.seed
        self._crop_samples = crop_samples
        self._speech = storage.open([path for source in data.train_clean for path in list_files(source, "clean")])
        noise_files = [list_files(source, "noise") for source in data.train_noise]
        self._noise = storage.open([path for files in noise_files for path in files])
        self._rooms = storage.open([path for source in data.train_rir for path in list_files(source, "rir")])
        self._crops = Crops(self._speech.lengths, crop_samples)
        self._noise_ends = _draw_table(
            self._noise.lengths, [len(files) for files in noise_files], data.train_noise_weights
        )
        self._active_levels_db: dict[int, float] = {}
        self.has_noise = len(self._noise) > 0
        self.has_rooms = len(self._rooms) > 0

    def __len__(self) -> int:
        return len(self._crops)

    def fingerprint(self) -> str:
        """Changes with the recordings."""
        return "-".join(pool.fingerprint() for pool in (self._speech, self._noise, self._rooms))

    def make(self, position: int, number: int) -> Example:
        """Example `number` of an epoch, at `position` of the endless sequence."""
        rng = np.random.default_rng([self._seed, 2, position])
        factor = float(rng.uniform(*self._mixing.speed_factor)) if rng.random() < self._mixing.speed else 1.0
        file, start, count = self._crops.draw(rng, number, math.ceil(self._crop_samples * factor))
        speech = self._spoken(rng, file, self._speech.read(file, start, count))
        if factor != 1.0:
            speech = change_speed(speech, factor, max(1, min(self._crop_samples, int(count / factor))))
        mixture = draw_mixture(rng, self._mixing, speech, _Around(self, file), self._rate)
        return Example(mixture.clean, mixture.noisy, f"{self._speech.files[file]}: {mixture.description}")

    def noise(self, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, str]:
        """A piece of recorded noise, every second (or folder) as likely as `data.train_noise_weights` says."""
        file = int(np.searchsorted(self._noise_ends, rng.random(), side="right"))
        file = min(file, len(self._noise) - 1)
        return self._piece(rng, self._noise, file, samples), self._noise.files[file].stem

    def voice(self, rng: np.random.Generator, samples: int, target: int) -> tuple[np.ndarray, str]:
        """A piece of the speech of another recording than the target's, if there is one."""
        for _ in range(_PLACES):
            file = self._crops.draw(rng, int(rng.integers(len(self))))[0]
            if file != target:
                break
        return self._spoken(rng, file, self._piece(rng, self._speech, file, samples)), self._speech.files[file].stem

    def room(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """An impulse response."""
        file = int(rng.integers(len(self._rooms)))
        length = min(int(self._rooms.lengths[file]), int(_LONGEST_ROOM_SECONDS * self._rate))
        return self._rooms.read(file, 0, length), self._rooms.files[file].stem

    def close(self) -> None:
        """Frees the recordings."""
        for recordings in (self._speech, self._noise, self._rooms):
            recordings.close()

    @staticmethod
    def _piece(rng: np.random.Generator, recordings: Recordings, file: int, samples: int) -> np.ndarray:
        length = int(recordings.lengths[file])
        if length < samples:
            return without_offset(noises.take(rng, recordings.read(file), samples))
        return without_offset(recordings.read(file, int(rng.integers(0, length - samples + 1)), samples))

    def _spoken(self, rng: np.random.Generator, file: int, piece: np.ndarray) -> np.ndarray:
        """The piece, or in place of a pause another one of the recording; silence where none is found."""
        for _ in range(_PLACES):
            piece = without_offset(piece)
            if _loudest_frame_db(piece, self._rate) > self._active_level_db(file) - _PAUSE_DB:
                return piece
            piece = self._piece(rng, self._speech, file, len(piece))
        return np.zeros_like(piece)

    def _active_level_db(self, file: int) -> float:
        """P.56 active level of a recording of speech; infinite for a silent one, whose pieces are all pauses."""
        if file not in self._active_levels_db:
            length, piece = int(self._speech.lengths[file]), _PIECE_SECONDS * self._rate
            if length <= _PIECES * piece:
                samples = self._speech.read(file)
            else:
                starts = np.linspace(0, length - piece, _PIECES).astype(int).tolist()
                # What is not cached may have to be decoded from its start for each piece: then once.
                whole = None if self._speech.cached else self._speech.read(file)
                samples = np.concatenate(
                    [
                        self._speech.read(file, start, piece) if whole is None else whole[start : start + piece]
                        for start in starts
                    ]
                )
            level_db = active_level_db(without_offset(samples), self._rate)
            self._active_levels_db[file] = level_db if math.isfinite(level_db) else math.inf
        return self._active_levels_db[file]


class _Around(NamedTuple):
    """The pools for one example: `mixing.Pools` whose voices are others than the target's."""

    examples: MixedExamples
    target: int

    @property
    def has_rooms(self) -> bool:
        return self.examples.has_rooms

    @property
    def has_noise(self) -> bool:
        return self.examples.has_noise

    def noise(self, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, str]:
        return self.examples.noise(rng, samples)

    def voice(self, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, str]:
        return self.examples.voice(rng, samples, self.target)

    def room(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        return self.examples.room(rng)


def _loudest_frame_db(samples: np.ndarray, sample_rate_hz: int) -> float:
    """Level of the loudest 20 ms: float32 [N] -> dB; -inf for silence."""
    size = min(len(samples), round(_FRAME_SECONDS * sample_rate_hz))
    power = np.square(samples[: len(samples) // size * size]).reshape(-1, size).mean(axis=1).max()
    return 10 * math.log10(power) if power > 0 else -math.inf


def list_files(source: str, kind: str) -> list[Path]:
    """The training files of a kind in a folder, or in a manifest that `saf-jax prepare folder` wrote.

    Args:
      source: a folder, or the path of a manifest, which ends with ".csv".
      kind: "clean", "noise" or "rir".

    Raises:
      UserError: missing or without such files.
    """
    if not source.endswith(".csv"):
        return audio.list_audio(source)
    rows = read_manifest(source, ("file", "kind", "split"))
    files = [Path(source).parent / row["file"] for row in rows if row["kind"] == kind and row["split"] == "train"]
    if not files:
        raise UserError(
            f"{source}: names no {kind} files for training: make it with saf-jax prepare folder --{kind} DIR"
        )
    return files


def list_all_pairs(clean: tuple[str, ...], noisy: tuple[str, ...], part: str) -> list[audio.Pair]:
    """The pairs of folders of clean files and folders of noisy ones.

    Raises:
      UserError: not as many folders here as there, a folder is missing or empty, a file has no partner.
    """
    if len(clean) != len(noisy):
        raise UserError(
            f"data.{part}_clean names {len(clean)} folders, data.{part}_noisy {len(noisy)}: name them in pairs"
        )
    return [pair for folders in zip(clean, noisy) for pair in audio.list_pairs(*folders)]


def common_length(pair: audio.Pair, clean_samples: int, noisy_samples: int) -> int:
    """The shorter length of a pair; a difference up to 1 % is taken for the trimming of ends.

    Raises:
      UserError: the lengths differ by more; names both files.
    """
    short, long = sorted((int(clean_samples), int(noisy_samples)))
    if long - short > _LARGEST_MISMATCH * long:
        raise UserError(
            f"{pair.clean} has {clean_samples} samples, {pair.noisy} has {noisy_samples}: they are no pair: "
            "put the right file in its place"
        )
    return short


def _draw_table(lengths: np.ndarray, folder_sizes: list[int], weights: tuple[float, ...]) -> np.ndarray:
    """Upper bounds in [0, 1] of each file's share of draws: by seconds, within each folder if folders have weights."""
    shares = lengths.astype(np.float64)
    if weights:
        end = 0
        for size, weight in zip(folder_sizes, weights):
            part = slice(end, end + size)
            shares[part] *= weight / shares[part].sum()
            end += size
    return np.cumsum(shares) / shares.sum()
