"""The validation loss: over all validation recordings, on all devices."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from saf_jax import parallel
from saf_jax.config import Config
from saf_jax.data import pipeline
from saf_jax.losses import weighted_sum
from saf_jax.training_step import TrainState, build_validation_step


class Validation:
    """Measures the loss of a state on the validation recordings, cut into crops.

    Attributes:
      fingerprint: changes with the recordings.

    Args:
      config: all settings.

    Raises:
      UserError: the recordings cannot be used.
    """

    def __init__(self, config: Config):
        self._config = config
        pairs = pipeline.validation_pairs(config)
        self.fingerprint = _fingerprint(pairs)
        self._batches = _validation_batches(config, pairs)
        self._step = parallel.map_over_devices(build_validation_step(config))

    def measure(self, state: TrainState) -> tuple[float, dict[str, float]]:
        """The weighted loss and its parts by their names in `LossConfig`."""
        sums: dict[str, Any] = {}
        for batch in self._batches:
            _, terms = self._step(state, parallel.put_batch(batch))
            sums = jax.tree.map(lambda a, b: a + b, sums, terms) if sums else terms
        sums = jax.device_get(sums)
        return (
            float(weighted_sum(sums, self._config.loss)),
            {name: float(term.total / max(term.count, 1)) for name, term in sums.items()},
        )


def _fingerprint(pairs: Sequence[pipeline.ValidationPair]) -> str:
    """Of the files' names, lengths and levels, not of their bits: another decoder may round otherwise."""

    def level_db(samples: np.ndarray) -> float:
        return round(10 * math.log10(float(np.mean(np.square(samples, dtype=np.float64))) + 1e-12), 1)

    listing = [[pair.name, len(pair.clean), level_db(pair.clean), level_db(pair.noisy)] for pair in pairs]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def _validation_batches(config: Config, pairs: Sequence[pipeline.ValidationPair]) -> list[dict[str, np.ndarray]]:
    """This process's part of the recordings, cut into crops of one length: one compiled program serves all."""
    size = round(config.data.crop_seconds * config.stft.sample_rate_hz)
    crops = []
    for pair in pairs:
        for start in range(0, len(pair.noisy), size):
            noisy, clean = pair.noisy[start : start + size], pair.clean[start : start + size]
            fill = (0, size - len(noisy))
            crops.append((np.pad(noisy, fill), np.pad(clean, fill), len(noisy)))
    count = config.train.batch_size // parallel.process_count()
    # Every process must make the same number of calls: the crops are dealt out in turn and the last batches filled up
    # with empty ones, which count nothing.
    empty = (np.zeros(size, np.float32), np.zeros(size, np.float32), 0)
    crops += [empty] * (-len(crops) % (count * parallel.process_count()))
    mine = crops[parallel.process_index() :: parallel.process_count()]
    return [
        {
            "noisy": np.stack([crop[0] for crop in part]).astype(np.float32),
            "clean": np.stack([crop[1] for crop in part]).astype(np.float32),
            "samples": np.array([crop[2] for crop in part], np.int32),
        }
        for part in (mine[i : i + count] for i in range(0, len(mine), count))
    ]
