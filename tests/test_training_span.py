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
    assert not span.over(0) and not span.runs
    span.start()
    assert span.runs
    clock[0] += 60
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


def test_several_processes_go_by_the_main_one_s_clock(clock):
    """They ask at different moments and have the same answers."""
    told = []

    def tell(seconds):
        told.append(seconds)
        return seconds

    train = TrainConfig(minutes=10)
    main = TrainingSpan(train, 10**6, from_main_process=tell)
    other = TrainingSpan(train, 10**6, from_main_process=lambda _: told[-1])
    for step in range(1, 1000):
        parts, ends = [], []
        for span in (main, other):
            if not span.runs:
                span.start()
            clock[0] += 0.75
            parts.append(span.done(step))
            ends.append(span.over(step))
        assert parts[0] == parts[1] and ends[0] == ends[1]
        if ends[0]:
            break
        if step % 20 == 0:
            main.read_together(step)
            other.read_together(step)
            assert main.done(step) == pytest.approx(main.seconds / 600)
            # A validation, after the 20 steps of half a minute. No step counts as longer for it.
            clock[0] += 30
            main.read_together(step)
            other.read_together(step)
            if step > 20:
                assert main.done(step + 10) - main.done(step) == pytest.approx(15 / 600)
    # The ten minutes were over with the validation at step 200.
    assert step == 201


def test_before_the_first_common_reading_only_earlier_calls_count(clock):
    span = TrainingSpan(TrainConfig(minutes=1), 100, seconds=15, from_main_process=lambda seconds: seconds)
    span.start()
    clock[0] += 500
    assert (span.done(1), span.over(1)) == (0.25, False)
