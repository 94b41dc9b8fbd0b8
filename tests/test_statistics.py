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
    values = [1.0, 2.0, 4.0, 7.0, 9.0]
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean([3.0] * 5) == (3.0, 3.0, 3.0, 5)
    few, none = bootstrap_mean(values[:4]), bootstrap_mean([])
    assert few.mean == 3.5 and math.isnan(few.low) and math.isnan(few.high) and few.count == 4
    assert math.isnan(none.mean) and none.count == 0


@pytest.mark.parametrize("files", [6, 8, 20])
def test_few_files_do_not_make_a_difference_out_of_chance(files):
    """Plain percentiles of five normal values leave the truth out in 15 of 100 cases."""
    random = np.random.default_rng(files)
    found = [bootstrap_mean(random.normal(0, 1, files), seed=trial) for trial in range(400)]
    assert np.mean([not (mean.low <= 0 <= mean.high) for mean in found]) < 0.09
