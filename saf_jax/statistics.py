"""Means over files and how sure they are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000


class Mean(NamedTuple):
    """A mean over files with its 95 % confidence interval; NaN where no file has a value.

    Attributes:
      mean: over the files that have a value.
      low: lower end of the interval.
      high: upper end of the interval.
      count: number of files that have a value.
    """

    mean: float
    low: float
    high: float
    count: int


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Mean:
    """Mean with a 95 % percentile bootstrap interval: files are drawn with replacement, 4000 times.

    Files of one speaker are treated as independent; the interval says nothing about other speakers or noises.

    References:
      Efron, Tibshirani: "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Mean(np.nan, np.nan, np.nan, 0)
    if len(values) == 1:
        return Mean(float(values[0]), np.nan, np.nan, 1)
    random = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    # In pieces: 4000 draws of a large test set at once would take gigabytes.
    step = max(1, 4_000_000 // len(values))
    for start in range(0, RESAMPLES, step):
        draws = random.integers(len(values), size=(min(step, RESAMPLES - start), len(values)))
        means[start : start + step] = values[draws].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(float(values.mean()), float(low), float(high), len(values))
