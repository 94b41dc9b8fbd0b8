"""Metrics of signals in memory, computed in processes beside the training.

The processes import numpy and the metrics, never jax, each on one thread and at low priority: the training goes first.
"""

import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from saf_jax import metrics
from saf_jax.errors import UserError
from saf_jax.worker_processes import one_thread_per_process, spawn_pool, usable_cores

METRICS = {
    "wb_pesq": metrics.wb_pesq,
    "stoi_percent": metrics.stoi_percent,
    "si_sdr_db": metrics.si_sdr_db,
    "ssnr_db": metrics.ssnr_db,
}
"""Metrics of a clean and an enhanced signal at 16 kHz, by the names of the field's tables; larger is better."""

_NICENESS = 10


class Pair(NamedTuple):
    """A reference and what is held against it: float32 [N] each, 16 kHz, full scale 1."""

    clean: np.ndarray
    enhanced: np.ndarray


def available_metrics() -> tuple[str, ...]:
    """All of `METRICS`, without WB-PESQ where the package pesq is not installed."""
    return tuple(name for name in METRICS if name != "wb_pesq" or importlib.util.find_spec("pesq") is not None)


def pair_metrics(names: Sequence[str], pair: Pair) -> dict[str, float]:
    """Metrics of one pair by name; those without a value (silence, no utterance, samples that are NaN) are left out."""
    values = {}
    for name in names:
        try:
            # The last digits depend on how many threads the sums were spread over.
            values[name] = round(METRICS[name](pair.clean, pair.enhanced), 6)
        except (metrics.UndefinedMetricError, UserError):
            continue
    return values


class Pending:
    """Metrics under way; see `MetricPool.submit`."""

    def __init__(self, pool: "MetricPool", names: Sequence[str], pairs: Sequence[Pair]):
        self._pool, self._names, self._pairs = pool, tuple(names), list(pairs)
        self._futures = [pool._start(self._names, pair) for pair in self._pairs]

    def result(self) -> list[dict[str, float]]:
        """Waits; metrics by name of each pair, in their order, nothing for a pair that a process died over."""
        values: list[dict[str, float] | None] = []
        for future in self._futures:
            try:
                values.append(future.result())
            except BrokenProcessPool:
                values.append(None)
        # PESQ is native code with fixed buffers. One pair may have killed the pool for all: each gets a pool's whole
        # attention once, so that it costs that pair alone.
        return [
            self._pool._alone(self._names, pair) if value is None else value
            for value, pair in zip(values, self._pairs, strict=True)
        ]


class MetricPool:
    """Processes that compute metrics.

    Args:
      jobs: number of processes; None takes a quarter of the cores, 1 to 8.
    """

    def __init__(self, jobs: int | None = None):
        self._jobs = jobs or min(8, max(1, usable_cores() // 4))
        self._start_pool()

    def _start_pool(self) -> None:
        self._executor = spawn_pool(self._jobs, preload=("pesq", __name__), niceness=_NICENESS)
        # The processes start now, before the training's threads are busy, and the first signals do not wait for them.
        with one_thread_per_process():
            for _ in range(self._jobs):
                self._executor.submit(os.getpid)

    def submit(self, names: Sequence[str], pairs: Sequence[Pair]) -> Pending:
        """Starts computing metrics of pairs and returns at once.

        Args:
          names: of `METRICS`.
          pairs: signals; they must not be changed until the result is there.
        """
        return Pending(self, names, pairs)

    def close(self) -> None:
        """Ends the processes; what is under way is given up."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self, names: tuple[str, ...], pair: Pair) -> Future:
        with one_thread_per_process():
            try:
                return self._executor.submit(pair_metrics, names, pair)
            except BrokenProcessPool:
                self._start_pool()
                return self._executor.submit(pair_metrics, names, pair)

    def _alone(self, names: tuple[str, ...], pair: Pair) -> dict[str, float]:
        try:
            return self._start(names, pair).result()
        except BrokenProcessPool:
            return {}
