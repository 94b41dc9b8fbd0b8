import dataclasses
import json

import jax
import numpy as np
import pytest
from pairs import speech_like
from scipy.stats import spearmanr
from training_runs import SMALL, newest

from saf_jax import audio, metric_labels
from saf_jax.config import Config, DiscriminatorConfig, LossConfig, TrainConfig, load_config
from saf_jax.discriminator_step import judge
from saf_jax.errors import UserError
from saf_jax.metric_labels import MetricLabels, check_label_package, normalised, placeholder_arrays
from saf_jax.metrics import wb_pesq
from saf_jax.training import train_and_evaluate
from saf_jax.training_run import LOG_FILE
from saf_jax.training_step import init_state

CONFIG = Config(
    loss=LossConfig(metric=0.05),
    discriminator=DiscriminatorConfig(label_delay_steps=3, label_processes=1),
    train=TrainConfig(batch_size=3),
)
N = 24000


@pytest.fixture
def labels():
    pytest.importorskip("pesq")
    companion = MetricLabels(CONFIG)
    yield companion
    companion.close()


def judged(step):
    """A noisy, a silent and a shorter signal; the later the step, the noisier."""
    clean = np.stack([speech_like(1.5, i) for i in range(3)]).astype(np.float32)
    clean[1] = 0
    noise = np.random.default_rng(step).standard_normal(clean.shape).astype(np.float32)
    samples = np.array([N, N, 16000], np.int32)
    return {"target": clean, "estimate": clean + 0.002 * step * noise, "samples": samples}


def run(companion, first, last):
    """What the batches of these steps take along."""
    taken = {}
    for step in range(first, last + 1):
        taken[step] = companion.before_step(step, {"noisy": None})["labels"]
        result = {"loss": 1.0, "judged": jax.device_put(judged(step))}
        companion.after_step(step, {}, result)
        assert set(result) == {"loss"}
    return taken


def test_labels_come_at_their_step_and_a_resumed_run_gets_the_same(labels):
    taken = run(labels, 1, 4)
    # As in the loop: the batch of the next step is on its way when a checkpoint is saved.
    following = labels.before_step(5, {})["labels"]
    saved = json.loads(json.dumps(labels.get_state(4)))
    for step in (1, 2, 3):
        assert np.isnan(taken[step]).all()
    for step, found in ((4, taken[4]), (5, following)):
        signals = judged(step - 3)
        wanted = [
            normalised(wb_pesq(signals["target"][i][:n], signals["estimate"][i][:n])) for i, n in ((0, N), (2, 16000))
        ]
        np.testing.assert_allclose(found[[0, 2]], wanted, atol=1e-5)
        assert np.isnan(found[1])
        assert 0 < min(wanted) < 0.95
    assert not np.array_equal(taken[4], following)

    resumed = MetricLabels(CONFIG)
    try:
        resumed.set_state(saved, 4, None)
        again, onward = run(resumed, 5, 8), {5: following}
        labels.after_step(5, {}, {"judged": jax.device_put(judged(5))})
        onward |= run(labels, 6, 8)
        for step in again:
            np.testing.assert_array_equal(again[step], onward[step])
    finally:
        resumed.close()


def test_scores_are_brought_to_0_to_1():
    assert [normalised(score) for score in (0.9, 1.0, 2.75, 4.5, 4.64)] == [0, 0, 0.5, 1, 1]


def test_synthetic_batches_have_no_labels():
    assert np.isnan(placeholder_arrays(CONFIG, 3)["labels"]).all()
    assert placeholder_arrays(Config(), 3) == {}


def test_without_pesq_the_run_does_not_start(monkeypatch):
    monkeypatch.setattr(metric_labels, "available_metrics", lambda: ("stoi_percent",))
    with pytest.raises(UserError, match=r"loss\.metric=0\.05: needs the package pesq: pip install 'saf-jax\[eval\]'"):
        check_label_package(CONFIG)
    check_label_package(dataclasses.replace(CONFIG, loss=LossConfig()))


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    """Labels under way, the batches that wait for them, the discriminator and its optimiser: bit for bit."""
    pytest.importorskip("pesq")
    for i in range(4):
        clean = speech_like(1.5, i).astype(np.float32)
        noise = 0.01 * (i + 1) * np.random.default_rng(i).standard_normal(len(clean)).astype(np.float32)
        for kind, samples in (("clean", clean), ("noisy", clean + noise)):
            audio.write(tmp_path / kind / f"{i}.wav", audio.Audio(samples, 16000))
    data = [f"data.{part}_{kind}={tmp_path / kind}" for part in ("train", "valid") for kind in ("clean", "noisy")]
    settings = [*SMALL, *data, "data.crop_seconds=1", "train.validate_every=4", "loss.metric=0.05"]
    settings += ["discriminator.width=4", "discriminator.label_delay_steps=2", "discriminator.label_processes=1"]
    whole, part = (load_config("paper", [*settings, f"train.steps={steps}"]) for steps in (8, 5))
    train_and_evaluate(whole, tmp_path / "whole", quiet=True)
    train_and_evaluate(part, tmp_path / "parts", quiet=True)
    train_and_evaluate(whole, tmp_path / "parts", quiet=True)

    (_, state, meta), (_, other, other_meta) = (newest(whole, tmp_path / name) for name in ("whole", "parts"))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))
    labels = meta["companions"]["labels"]
    assert labels == other_meta["companions"]["labels"]
    assert all(0 <= label <= 1 for batch in labels.values() for label in batch)

    entries = [json.loads(line) for line in (tmp_path / "whole" / LOG_FILE).read_text().splitlines()]
    trained = [entry for entry in entries if entry["event"] == "train"]
    assert trained[-1]["discriminator"] > 0
    assert trained[-1]["metric"] > 0
    assert "valid_metric" not in next(entry for entry in entries if entry["event"] == "valid")


@pytest.mark.slow
def test_the_discriminator_learns_what_pesq_says(audio_root, tmp_path):
    """A short training on real speech in real noise; then files that it has not heard, at -5 to 25 dB."""
    pytest.importorskip("pesq")
    speech, noise = (sorted((audio_root / "train" / kind).rglob("*.flac")) for kind in ("clean", "noise"))
    speech, noise = (paths[:: len(paths) // 72][:72] for paths in (speech, noise))
    clean, noisy = [], []
    for i, paths in enumerate(zip(speech, noise, strict=True)):
        signal, rest = (np.resize(audio.read_mono(path, 16000), 48000)[16000:] for path in paths)
        gain = np.sqrt(np.mean(signal**2) / max(np.mean(rest**2), 1e-9)) * 10 ** (-(i % 6 * 6 - 5) / 20)
        clean.append(signal)
        noisy.append((signal + gain * rest).astype(np.float32))
        for kind, samples in (("clean", signal), ("noisy", noisy[-1])):
            if i < 48:
                audio.write(tmp_path / kind / f"{i}.wav", audio.Audio(samples / max(1, np.abs(noisy[-1]).max()), 16000))
    data = [f"data.{part}_{kind}={tmp_path / kind}" for part in ("train", "valid") for kind in ("clean", "noisy")]
    settings = [*SMALL, *data, "data.crop_seconds=2", "loss.metric=0.05", "train.steps=150"]
    settings += ["train.validate_every=150", "train.schedule=constant"]
    config = load_config("paper", settings)
    train_and_evaluate(config, tmp_path / "run", quiet=True)

    clean, noisy = (np.stack(signals[48:]).astype(np.float32) for signals in (clean, noisy))
    measured = np.array([wb_pesq(*pair) for pair in zip(clean, noisy, strict=True)])
    level = np.sqrt(np.mean(noisy**2, axis=1, keepdims=True))
    correlations = []
    for state in (init_state(config), newest(config, tmp_path / "run")[1]):
        scores = judge(config, state.discriminator.params, noisy / level, clean / level, np.full(24, 32000))
        correlations.append(spearmanr(scores, measured)[0])
    # Measured after 150 steps: from -0.19 to 0.35; a discriminator that has to serve learns for thousands.
    assert correlations[1] > correlations[0] + 0.3
