"""PESQ labels for the metric discriminator, computed in processes beside the training.

The estimates of step s go to a pool of processes while the devices work on the steps after it; the batch of step
s + `discriminator.label_delay_steps` takes the labels along, and waits for them when they are late.
"""

from typing import Any

import jax
import numpy as np

from saf_jax import audio, parallel
from saf_jax.companions import Companion
from saf_jax.config import Config
from saf_jax.errors import UserError
from saf_jax.metric_pool import MetricPool, Pair, Pending, available_metrics
from saf_jax.metrics import SAMPLE_RATE_HZ

_METRIC = "wb_pesq"


def normalised(wb_pesq: float) -> float:
    """WB-PESQ, 1 to 4.64, as the discriminator is to tell it, 0 to 1 (CMGAN, arXiv 2203.15149, equation 8)."""
    return min(max((wb_pesq - 1) / 3.5, 0.0), 1.0)


def placeholder_arrays(config: Config, batch_size: int) -> dict[str, np.ndarray]:
    """What a batch of synthetic examples needs besides them to be trained on: no labels."""
    return {"labels": np.full(batch_size, np.nan, np.float32)} if config.loss.metric else {}


def check_label_package(config: Config) -> None:
    """Raises `UserError` where the config's discriminator would have no labels."""
    if config.loss.metric and _METRIC not in available_metrics():
        raise UserError(
            f"loss.metric={config.loss.metric}: needs the package pesq: pip install 'saf-jax[eval]', or set it to 0"
        )


class MetricLabels(Companion):
    """Labels the estimates of each step.

    Each process labels those of its own part of the batch.

    Args:
      config: the settings.
    """

    name = "labels"

    def __init__(self, config: Config):
        self._delay = config.discriminator.label_delay_steps
        self._rate_hz = config.stft.sample_rate_hz
        self._count = config.train.batch_size // parallel.process_count()
        self._labels: dict[int, Pending | np.ndarray] = {}
        self._judged: tuple[int, dict[str, jax.Array]] | None = None
        self._pool = MetricPool(config.discriminator.label_processes or None)

    def before_step(self, step: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        due = step - self._delay
        # A checkpoint may still be saved at the step before, from which this one would be done again.
        self._labels = {done: labels for done, labels in self._labels.items() if done >= due}
        return {**batch, "labels": self._known(due)}

    def after_step(self, step: int, batch: dict[str, Any], result: dict[str, Any]) -> None:
        # The estimates of the step before are there by now, or soon: the devices have begun with this one.
        self._submit()
        self._judged = step, result.pop("judged")

    def get_state(self, step: int) -> dict[str, list[float | None]]:
        self._submit()
        state = {}
        for done in sorted(self._labels):
            labels = parallel.from_all_processes(self._known(done)).reshape(-1)
            state[str(done)] = [None if np.isnan(label) else float(label) for label in labels]
        return state

    def set_state(self, saved: dict[str, list[float | None]], step: int, state: Any) -> None:
        mine = slice(parallel.process_index() * self._count, (parallel.process_index() + 1) * self._count)
        self._labels = {int(done): np.array(labels[mine], np.float32) for done, labels in saved.items()}

    def close(self) -> None:
        self._pool.close()

    def _known(self, step: int) -> np.ndarray:
        """The labels of a step's estimates, NaN for none: float32 [B] of this process; waits for them."""
        labels = self._labels.get(step)
        if isinstance(labels, Pending):
            values = [normalised(found[_METRIC]) if _METRIC in found else np.nan for found in labels.result()]
            self._labels[step] = np.array(values, np.float32)
        return np.full(self._count, np.nan, np.float32) if labels is None else self._labels[step]

    def _submit(self) -> None:
        """Hands the estimates that wait to the pool."""
        if self._judged is None:
            return
        step, judged = self._judged
        self._judged = None
        mine = slice(parallel.process_index() * self._count, (parallel.process_index() + 1) * self._count)
        judged = jax.device_get(judged)
        pairs = [
            Pair(*(self._at_metrics_rate(signal[:samples]) for signal in signals))
            for *signals, samples in zip(*(judged[name][mine] for name in ("target", "estimate", "samples")))
        ]
        self._labels[step] = self._pool.submit((_METRIC,), pairs)

    def _at_metrics_rate(self, samples: np.ndarray) -> np.ndarray:
        return samples if self._rate_hz == SAMPLE_RATE_HZ else audio.resample(samples, self._rate_hz, SAMPLE_RATE_HZ)
