import math

import pytest
from scipy.stats import t

from saf_jax.sweep_statistics import BETTER, ONE_SEED, WITHIN_SEEDS, paired_difference, pooled_spread, verdict


def test_spread_is_pooled_over_rows_and_its_margin_is_students():
    spread = pooled_spread([[1.0, 3.0], [5.0, 5.0], [7.0]])
    assert spread.freedom == 2 and spread.deviation == pytest.approx(1.0)
    assert spread.margin(2, 2) == pytest.approx(t.ppf(0.975, 2))
    assert math.isnan(pooled_spread([[1.0], [2.0]]).margin(1, 1))


def test_a_difference_counts_only_beyond_the_seeds():
    reference = [{"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}]
    difference = paired_difference([{"a": 2.0, "b": 3.0, "c": 9.0}, {"a": 2.0, "b": 3.0}], reference)
    assert difference.mean == pytest.approx(1.0) and difference.count == 2
    assert verdict(difference, 0.5) == BETTER
    assert verdict(difference, 1.5) == WITHIN_SEEDS
    assert verdict(difference, math.nan) == ONE_SEED
