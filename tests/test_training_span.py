import time

import pytest

from saf_jax.config import TrainConfig
from saf_jax.training_span import TrainingSpan


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set: `clock[0] = seconds`."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_minutes_only_steps_count(clock):
    span = TrainingSpan(TrainConfig(), total_steps=10)
    span.start()
    clock[0] += 1e6
    assert (span.done(5), span.over(9), span.over(10)) == (0.5, False, True)


def test_the_clock_starts_with_the_first_step_and_ends_the_training(clock):
    span = TrainingSpan(TrainConfig(minutes=2), total_steps=10**6)
    clock[0] += 1000
    assert not span.over(0)
    span.start()
    clock[0] += 60
    span.start()
    assert span.done(40) == pytest.approx(0.5)
    clock[0] += 59
    assert not span.over(80)
    clock[0] += 1
    assert span.over(81)
    assert span.done(81) == pytest.approx(1.0)


def test_what_is_further_counts(clock):
    span = TrainingSpan(TrainConfig(minutes=1), total_steps=100)
    span.start()
    clock[0] += 6
    assert (span.done(5), span.done(50)) == (pytest.approx(0.1), 0.5)
    assert span.over(100)


def test_a_resumed_training_goes_on_with_its_time(clock):
    first = TrainingSpan(TrainConfig(minutes=1), total_steps=100)
    first.start()
    clock[0] += 45
    second = TrainingSpan(TrainConfig(minutes=1), total_steps=100, seconds=first.seconds)
    clock[0] += 500
    assert second.done(1) == pytest.approx(0.75)
    second.start()
    clock[0] += 15
    assert second.over(2)


def test_warm_up_is_not_part_of_the_fall(clock):
    span = TrainingSpan(TrainConfig(warmup_steps=20), total_steps=100)
    assert (span.done(10), span.done(20), span.done(60)) == (0.0, 0.0, 0.5)
