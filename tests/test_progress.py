"""The bar of a training."""

import itertools
import time

import pytest

from saf_jax import parallel
from saf_jax.progress import TrainingProgress


@pytest.fixture
def clock(monkeypatch):
    """Sets the time by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_bar_shows_what_a_person_wants_to_know(monkeypatch, capsys, clock):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(parallel, "device_memory_gb", lambda: 3.25)
    with TrainingProgress(1000, 40, 50, 12.0, quiet=False) as progress:
        clock[0] += 4.0
        assert progress.advance(60) == {"audio_seconds_per_second": 60.0, "device_memory_gb": 3.25}
        parts = {"complex": 0.25, "time": 0.125, "gradient_norm": 1.5}
        progress.show({"event": "train", "unix_seconds": 1, "step": 60, "loss": 0.5, **parts})
        progress.show({"event": "valid", "step": 60, "valid_loss": 0.75, "gap": 0.25})
        progress.show({"event": "scores", "step": 60, "wb_pesq": 2.5, "noisy_wb_pesq": 2.0})
    shown = capsys.readouterr().err
    for text in ("epoch 2", "60/1000", "loss 0.5000", "60.0 audio-s/s 3.2 GB", "complex 0.25", "time 0.125",
                 "step 60: valid 0.7500 gap +0.2500", "wb_pesq 2.5"):  # fmt: skip
        assert text in shown, text
    assert "noisy_wb_pesq" not in shown


def test_speed_leaves_out_what_is_not_training(clock, capsys):
    progress = TrainingProgress(100, 0, 10, 6.0, quiet=True)
    speeds = []
    for step in itertools.islice(itertools.count(10, 10), 3):
        clock[0] += 3.0
        speeds.append(progress.advance(step)["audio_seconds_per_second"])
        clock[0] += 50.0
        progress.resume_clock()
    assert speeds == [20.0, 20.0, 20.0]
    assert capsys.readouterr().err == ""
