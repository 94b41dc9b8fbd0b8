"""Bootstrap intervals."""

import math

import numpy as np
import pytest

from saf_jax.statistics import bootstrap_mean


def test_interval_covers_the_true_mean_about_95_times_in_100():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        found = bootstrap_mean(random.exponential(2.0, 60), seed=trial)
        covered += found.low <= 2.0 <= found.high
    # 95 % less the small shortfall that the percentile method has on skewed samples of 60.
    assert 0.89 <= covered / 300 <= 0.98


def test_interval_shrinks_with_the_root_of_the_files():
    random = np.random.default_rng(1)
    widths = [np.subtract(*bootstrap_mean(random.normal(0, 1, n))[2:0:-1]) for n in (100, 10_000)]
    assert widths[0] == pytest.approx(2 * 1.96 / 10, rel=0.2) and widths[0] / widths[1] == pytest.approx(10, rel=0.2)


def test_same_values_give_the_same_interval_and_degenerate_ones_are_said():
    assert bootstrap_mean([1.0, 2.0, 4.0]) == bootstrap_mean([1.0, 2.0, 4.0])
    assert bootstrap_mean([3.0, 3.0]) == (3.0, 3.0, 3.0, 2)
    one, none = bootstrap_mean([3.0]), bootstrap_mean([])
    assert one.mean == 3.0 and math.isnan(one.low) and one.count == 1
    assert math.isnan(none.mean) and none.count == 0
