"""What checkpoints are judged by."""

import math

import pytest

from saf_jax import best_metric
from saf_jax.best_metric import check_best_metric, rating
from saf_jax.config import Config, TrainConfig
from saf_jax.errors import UserError


def config_with(**train) -> Config:
    return Config(train=TrainConfig(**train))


def test_rating_by_each_metric():
    scores = {"wb_pesq": 2.5, "noisy_wb_pesq": 2.0, "noisy_si_sdr_db": 8.0}
    assert rating(config_with(best_metric="auto"), 0.1, scores) == 2.5
    assert rating(config_with(best_metric="auto"), 0.1, {}) == -0.1
    assert rating(config_with(best_metric="valid_loss"), 0.1, scores) == -0.1
    # The noisy input has a value and the network's output none: worse than any.
    assert rating(config_with(best_metric="si_sdr_db"), 0.1, scores) == -math.inf
    with pytest.raises(UserError, match=r"train\.best_metric=stoi_percent: no validation file has a value"):
        rating(config_with(best_metric="stoi_percent"), 0.1, scores)


def test_metric_that_cannot_be_had_is_told_before_the_run(monkeypatch):
    assert check_best_metric(config_with(best_metric="wb_pesq")) is None
    with pytest.raises(UserError, match=r"set train\.score_files"):
        check_best_metric(config_with(best_metric="si_sdr_db", score_files=0))
    monkeypatch.setattr(best_metric, "available_metrics", lambda: ("si_sdr_db",))
    with pytest.raises(UserError, match=r"pip install 'saf-jax\[eval\]'"):
        check_best_metric(config_with(best_metric="wb_pesq"))
    assert "chosen by valid_loss" in check_best_metric(config_with(best_metric="auto"))
    assert check_best_metric(config_with(best_metric="si_sdr_db")) is None
    assert check_best_metric(config_with(best_metric="auto", score_files=0)) is None
