"""How sure the differences between the rows of a sweep are: over files, and over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from saf_jax.statistics import Mean, bootstrap_mean

Scores = Mapping[str, float]
"""A metric's value by file, of one run."""

BETTER, WORSE, WITHIN_SEEDS, UNCLEAR = "better", "worse", "within seeds", "unclear over files"
ONE_SEED, FEW_FILES = "one seed", "too few files"


class Spread(NamedTuple):
    """How much a metric's mean differs between runs that differ in nothing but their seed.

    Attributes:
      deviation: standard deviation, pooled over the rows; NaN where no row has two seeds.
      freedom: degrees of freedom of it.
    """

    deviation: float
    freedom: int

    def margin(self, seeds: int, other_seeds: int) -> float:
        """How far apart the means of two rows come by their seeds alone, in 95 of 100 cases; NaN where unknown."""
        from scipy.stats import t

        if not self.freedom or not seeds or not other_seeds:
            return math.nan
        return float(t.ppf(0.975, self.freedom)) * self.deviation * math.sqrt(1 / seeds + 1 / other_seeds)


def seed_means(seeds: Sequence[Scores]) -> list[float]:
    """The mean over files of each run."""
    return [float(np.mean(list(scores.values()))) for scores in seeds if scores]


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample (n - 1); NaN below two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def pooled_spread(rows: Sequence[Sequence[float]]) -> Spread:
    """The spread over seeds, from all rows together: two or three seeds of one row say too little.

    Args:
      rows: the means of the runs of each row.
    """
    freedom = sum(max(0, len(values) - 1) for values in rows)
    if not freedom:
        return Spread(math.nan, 0)
    squares = sum(float(np.sum(np.square(np.subtract(values, np.mean(values))))) for values in rows if len(values) > 1)
    return Spread(math.sqrt(squares / freedom), freedom)


def file_means(seeds: Sequence[Scores]) -> dict[str, float]:
    """The mean over seeds of each file that has a value in every run."""
    if not seeds:
        return {}
    common = set(seeds[0]).intersection(*seeds[1:])
    return {file: float(np.mean([scores[file] for scores in seeds])) for file in sorted(common)}


def paired_difference(row: Sequence[Scores], reference: Sequence[Scores]) -> Mean:
    """Mean difference `row - reference` over the common files, with its 95 % interval over files."""
    ours, theirs = file_means(row), file_means(reference)
    return bootstrap_mean([ours[file] - theirs[file] for file in ours if file in theirs])


def verdict(difference: Mean, margin: float) -> str:
    """What a difference amounts to; it counts where it is beyond both the files' and the seeds' chance.

    Args:
      difference: of two rows, larger is better.
      margin: `Spread.margin`.
    """
    if math.isnan(margin):
        return ONE_SEED
    if abs(difference.mean) <= margin:
        return WITHIN_SEEDS
    if math.isnan(difference.low):
        return FEW_FILES
    if difference.low > 0:
        return BETTER
    return WORSE if difference.high < 0 else UNCLEAR
