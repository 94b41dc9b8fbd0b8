"""Training and validation examples: crops of pairs, or mixtures made on the fly, batched by grain.

The order and the content of the examples follow from `train.seed` and the position in the endless sequence of examples
alone: not from the number of workers, of processes or of earlier interruptions.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saf_jax import audio
from saf_jax.config import Config
from saf_jax.data.examples import MixedExamples, PairedExamples, common_length, list_all_pairs
from saf_jax.data.folders import mixtures_speakers
from saf_jax.data.recordings import Storage
from saf_jax.errors import UserError

# As good as endless. grain's own endless repetition gives a single example a length beyond what `len` can return.
_EPOCHS = 1 << 32


class ValidationPair(NamedTuple):
    """A pair of recordings in full length: float32 [N] each; the speaker is empty where only the name may tell."""

    name: str
    clean: np.ndarray
    noisy: np.ndarray
    speaker: str = ""


def training_batches(config: Config, *, process_index: int = 0, process_count: int = 1) -> "Batches":
    """Endless batches over shuffled epochs.

    Args:
      config: `data` names the recordings, `train.batch_size` counts examples over all processes, `train.seed` seeds.
      process_index: number of this process.
      process_count: processes that train together; each gets its own part of every batch.

    Returns:
      An iterator of dicts: "noisy" and "clean" float32 [B, N], "samples" int32 [B] (what lies beyond is padding with
      zeros), "index" int64 [B] (position in the endless sequence of examples, for `describe_examples`), where B is
      `batch_size / process_count` and N is `crop_seconds` at the config's rate. It has `get_state()`,
      `set_state(state)` and `close()`.

    Raises:
      UserError: a folder is missing or empty, a file lacks its partner, is damaged or of another length.
    """
    if config.train.batch_size % process_count:
        raise UserError(
            f"train.batch_size={config.train.batch_size}: must be a multiple of the {process_count} processes"
        )
    return Batches(config, process_index, process_count)


def examples_per_epoch(config: Config) -> int:
    """Examples in a pass over the training set: one a recording, more where it is longer than a crop.

    Raises:
      UserError: as for `training_batches`.
    """
    return len(_examples(config, cached=False))


def describe_examples(config: Config, index: np.ndarray | list[int]) -> list[str]:
    """The files behind the examples of a batch, one line each; for naming what made a batch go wrong.

    Args:
      config: that of the training.
      index: "index" of a batch.
    """
    examples = _examples(config, cached=False)
    order = _order(config, len(examples))
    return [examples.make(int(position), int(order[int(position)])).sources for position in index]


def validation_pairs(config: Config) -> list[ValidationPair]:
    """The validation recordings in full length, at the config's rate.

    Raises:
      UserError: no folders are named, or as for `training_batches`.
    """
    if not config.data.valid_clean:
        raise UserError("data.valid_clean is empty: name a folder of clean validation speech (and data.valid_noisy)")
    pairs = list_all_pairs(config.data.valid_clean, config.data.valid_noisy, "valid")
    rate = config.stft.sample_rate_hz
    speakers: dict[Path, str] = {}
    for folder in config.data.valid_noisy:
        speakers |= mixtures_speakers(Path(folder))

    def read(pair: audio.Pair) -> ValidationPair:
        clean, noisy = audio.read_mono(pair.clean, rate), audio.read_mono(pair.noisy, rate)
        length = common_length(pair, len(clean), len(noisy))
        return ValidationPair(pair.name, clean[:length], noisy[:length], speakers.get(pair.noisy, ""))

    return [read(pair) for pair in pairs]


class Batches:
    """Iterator over training batches; see `training_batches`."""

    def __init__(self, config: Config, process_index: int, process_count: int):
        self._examples = _examples(config, shared=config.data.workers > 0)
        self._order = _order(config, len(self._examples))
        self._crop_samples = _crop_samples(config)
        self._batch_size = config.train.batch_size // process_count
        self._process = slice(process_index, None, process_count)
        self._workers = config.data.workers
        self._identity = {
            "examples": len(self._examples),
            "recordings": self._examples.fingerprint(),
            "seed": config.train.seed,
            "batch_size": config.train.batch_size,
        }
        self._next_batch = 0
        self._iterator: Iterator | None = None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start(self._next_batch)
        batch = next(self._iterator)
        self._next_batch += 1
        # Arrays from workers lie in shared memory that is freed late: copies of our own cost little.
        return {name: np.array(value) for name, value in batch.items()} if self._workers else batch

    def get_state(self) -> dict[str, int | str]:
        """What `set_state` needs to go on after the last batch taken; JSON-able."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: dict[str, int | str]) -> None:
        """Goes on where `get_state` was called, whatever the number of workers then and now.

        Raises:
          UserError: the training set, the seed or the batch size is not the one of the state.
        """
        for key, mine in self._identity.items():
            if state.get(key) != mine:
                raise UserError(
                    f"the training data differ from the checkpoint's ({key}: {state.get(key)} there, {mine} now): "
                    "put the old data and settings back, or start in a new --workdir"
                )
        self._stop()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Ends the worker processes and frees the recordings."""
        self._stop()
        self._examples.close()

    def _stop(self) -> None:
        if self._iterator is not None:
            with contextlib.suppress(AttributeError):
                self._iterator.close()
            self._iterator = None

    def _start(self, batch: int) -> Iterator:
        import grain.python as grain

        examples = self._order.map_with_index(_Make(self._examples, self._crop_samples))
        # Every `process_count`-th example, so that all processes together have the batch that one process would have.
        batches = examples.slice(self._process).batch(self._batch_size).slice(slice(batch, None))
        if self._workers:
            _parse_absl_flags()
            return iter(
                batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(
                    grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=4)
                )
            )
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


class _Make:
    """Makes an example and pads it to the crop's length; a class, so that it can be sent to workers."""

    def __init__(self, examples: PairedExamples | MixedExamples, crop_samples: int):
        self._examples = examples
        self._crop_samples = crop_samples

    def __call__(self, position: int, number: int) -> dict[str, np.ndarray]:
        example = self._examples.make(position, number)
        missing = self._crop_samples - len(example.noisy)
        return {
            "noisy": np.pad(example.noisy, (0, missing)) if missing else example.noisy,
            "clean": np.pad(example.clean, (0, missing)) if missing else example.clean,
            "samples": np.int32(len(example.noisy)),
            "index": np.int64(position),
        }


def _crop_samples(config: Config) -> int:
    return max(1, round(config.data.crop_seconds * config.stft.sample_rate_hz))


def _examples(config: Config, *, cached: bool = True, shared: bool = False) -> PairedExamples | MixedExamples:
    """The training set; `cached=False` looks at headers only, for questions that need no audio."""
    data = config.data
    storage = Storage(
        config.stft.sample_rate_hz,
        cache_bytes=data.cache_gb * 1e9 if cached else 0,
        cache_folder=data.cache_folder if cached else "",
        shared=shared,
    )
    if not data.train_clean:
        raise UserError("data.train_clean is empty: name a folder of clean training speech")
    if data.train_noisy:
        pairs = list_all_pairs(data.train_clean, data.train_noisy, "train")
        return PairedExamples(pairs, storage, _crop_samples(config), config.train.seed)
    if data.train_noise:
        return MixedExamples(config, storage, _crop_samples(config))
    raise UserError("data.train_noisy and data.train_noise are empty: name noisy versions, or noise to mix with")


def _order(config: Config, examples: int):
    """The endless sequence of example numbers: grain's map dataset, each epoch in an order of its own."""
    import grain.python as grain

    return grain.MapDataset.range(examples).shuffle(seed=_shuffle_seed(config.train.seed)).repeat(_EPOCHS)


def _shuffle_seed(seed: int) -> int:
    # grain adds the number of the epoch to the seed: neighbouring seeds would repeat each other's epochs.
    return int(np.random.SeedSequence([seed, 0]).generate_state(1)[0])


def _parse_absl_flags() -> None:
    """grain's workers read absl's flags, which nobody parses outside of absl's own programs."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
