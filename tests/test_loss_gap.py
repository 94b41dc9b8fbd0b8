"""The gap between training and validation loss."""

import pytest

from saf_jax.config import LossConfig
from saf_jax.loss_gap import LossGap


def test_gap_compares_the_terms_that_both_have_since_the_last_validation():
    gap = LossGap(LossConfig(complex=0.5, magnitude=2.0))
    assert gap.take(1.0, ["complex", "magnitude"]) == {}
    gap.add({"complex": 1.0, "magnitude": 0.2, "discriminator": 7.0, "gradient_norm": 3.0}, steps=20)
    gap.add({"complex": 4.0, "magnitude": 0.5, "discriminator": 9.0, "gradient_norm": 1.0}, steps=10)
    taken = gap.take(2.0, ["complex", "magnitude"])
    # 0.5 * (20 * 1 + 10 * 4) / 30 + 2 * (20 * 0.2 + 10 * 0.5) / 30
    assert taken["train_loss"] == pytest.approx(1.6) and taken["gap"] == pytest.approx(0.4)
    gap.add({"complex": 8.0, "magnitude": 0.0}, steps=1)
    assert gap.take(4.0, ["complex", "magnitude"])["train_loss"] == pytest.approx(4.0)
