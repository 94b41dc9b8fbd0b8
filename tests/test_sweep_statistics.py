import math

import pytest
from scipy.stats import t

from saf_jax.sweep_statistics import (
    BETTER,
    FEW_FILES,
    ONE_SEED,
    WITHIN_SEEDS,
    paired_difference,
    pooled_spread,
    verdict,
)


def test_spread_is_pooled_over_rows_and_its_margin_is_students():
    spread = pooled_spread([[1.0, 3.0], [5.0, 5.0], [7.0]])
    assert spread.freedom == 2 and spread.deviation == pytest.approx(1.0)
    assert spread.margin(2, 2) == pytest.approx(t.ppf(0.975, 2))
    assert math.isnan(pooled_spread([[1.0], [2.0]]).margin(1, 1))


def test_a_difference_counts_only_beyond_the_seeds():
    files = {name: float(place) for place, name in enumerate("abcde")}
    higher = {name: value + 1 for name, value in files.items()}
    difference = paired_difference([higher | {"f": 9.0}, higher], [files, files])
    assert difference.mean == pytest.approx(1.0) and difference.count == 5
    assert verdict(difference, 0.5) == BETTER
    assert verdict(difference, 1.5) == WITHIN_SEEDS
    assert verdict(difference, math.nan) == ONE_SEED


@pytest.mark.parametrize("files", ["", "a", "ab"])
def test_too_few_files_give_no_verdict(files):
    difference = paired_difference([dict.fromkeys(files, 2.0)] * 2, [dict.fromkeys(files, 1.0)] * 2)
    assert verdict(difference, 0.5) == FEW_FILES
