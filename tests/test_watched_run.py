"""A whole training with scores beside it: what it logs, keeps and shows, and that an interruption changes nothing."""

import contextlib
import json

import jax
import networks
import numpy as np
import pytest
from pairs import write_narrow_pairs

from saf_jax import parallel
from saf_jax.checkpoint import Checkpoints
from saf_jax.config import Config, DataConfig, STFTConfig, TrainConfig
from saf_jax.training import train_and_evaluate
from saf_jax.training_step import init_state

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """The least network on three pairs at 8 kHz, validated at every second step, scored one step later."""
    folder = write_narrow_pairs(tmp_path_factory.mktemp("pairs"))
    folders = [(str(folder / side),) for side in ("clean", "noisy")]
    return Config(
        stft=STFTConfig(sample_rate_hz=8000, window_samples=80, hop_samples=40),
        model=networks.least().model,
        data=DataConfig(*folders, valid_clean=folders[0], valid_noisy=folders[1], crop_seconds=0.2),
        train=TrainConfig(
            batch_size=8, steps=6, validate_every=2, score_files=2, score_delay_steps=2, log_every=1, keep_best=1,
            learning_rate=0.02, schedule="constant", average_decay=0.5,
        ),
    )  # fmt: skip


def entries_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def checkpoints_of(config, workdir):
    """The step of the best checkpoint, and the newest one's state."""
    checkpoints = Checkpoints(workdir, config.train.keep_best)
    try:
        return checkpoints.best_steps()[0], checkpoints.restore_newest(jax.eval_shape(lambda: init_state(config)))[1]
    finally:
        checkpoints.close()


def stop_after(monkeypatch, step: int | None) -> None:
    """As if SIGTERM came during a step."""

    @contextlib.contextmanager
    def stop_on_sigterm():
        yield lambda done: step is not None and done >= step

    monkeypatch.setattr(parallel, "stop_on_sigterm", stop_on_sigterm)


@pytest.mark.ci
def test_scores_choose_the_checkpoint_and_survive_interruptions(config, tmp_path, monkeypatch):
    train_and_evaluate(config, tmp_path / "whole", quiet=True)
    entries = entries_of(tmp_path / "whole")
    # Scores are there two steps later, before that step's own validation; those of the last step at its end.
    order = [entry["event"][0] + str(entry["step"]) for entry in entries]
    assert order == ["s0", "t1", "t2", "v2", "t3", "t4", "s2", "v4", "t5", "t6", "s4", "v6", "s6", "e6"]
    pesq = {entry["step"]: entry["wb_pesq"] for entry in entries if entry["event"] == "scores"}
    best, state = checkpoints_of(config, tmp_path / "whole")
    assert best == max(pesq, key=pesq.get)
    valid = [entry for entry in entries if entry["event"] == "valid"]
    losses = [entry["loss"] for entry in entries if entry["event"] == "train"]
    assert valid[1]["train_loss"] == pytest.approx(np.mean(losses[2:4]), rel=1e-5)
    assert valid[1]["gap"] == pytest.approx(valid[1]["valid_loss"] - valid[1]["train_loss"])

    # After step 4 the scores of step 4 are computed again from the checkpoint; after step 5 the checkpoint holds them.
    for step in (4, 5, None):
        stop_after(monkeypatch, step)
        result = train_and_evaluate(config, tmp_path / "parts", quiet=True)
        assert result["preempted"] == (step is not None)
    parts = entries_of(tmp_path / "parts")
    assert {entry["step"]: entry["wb_pesq"] for entry in parts if entry["event"] == "scores"} == pesq
    best_of_parts, state_of_parts = checkpoints_of(config, tmp_path / "parts")
    assert best_of_parts == best
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_of_parts), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
