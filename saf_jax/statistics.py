"""Means over files and how sure they are."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
FEWEST_FILES = 5
"""Below it there is no interval: draws from four values say next to nothing about others."""


class Mean(NamedTuple):
    """A mean over files with its 95 % confidence interval; NaN where no file has a value.

    Attributes:
      mean: over the files that have a value.
      low: lower end of the interval; NaN with fewer than five files.
      high: upper end of the interval.
      count: number of files that have a value.
    """

    mean: float
    low: float
    high: float
    count: int


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Mean:
    """Mean with a 95 % bootstrap interval: files are drawn with replacement, 4000 times.

    Plain percentiles of the draws are too narrow for few files (5 normal values: the truth lies outside in 15 of 100
    cases). They are taken further out, by as much as Student's t is wider than the normal distribution and the
    deviation of n values too small.

    Files of one speaker are treated as independent; the interval says nothing about other speakers or noises.

    References:
      Efron, Tibshirani: "An Introduction to the Bootstrap", 1993, chapter 13; Hesterberg, "What Teachers Should Know
      About the Bootstrap", The American Statistician 69(4), 2015: the expanded percentile interval.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Mean(np.nan, np.nan, np.nan, 0)
    if len(values) < FEWEST_FILES:
        return Mean(float(values.mean()), np.nan, np.nan, len(values))
    random = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    # In pieces: 4000 draws of a large test set at once would take gigabytes.
    step = max(1, 4_000_000 // len(values))
    for start in range(0, RESAMPLES, step):
        draws = random.integers(len(values), size=(min(step, RESAMPLES - start), len(values)))
        means[start : start + step] = values[draws].mean(axis=1)
    from scipy.special import ndtr, stdtrit

    tail = ndtr(stdtrit(len(values) - 1, 0.025) * math.sqrt(len(values) / (len(values) - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Mean(float(values.mean()), float(low), float(high), len(values))
