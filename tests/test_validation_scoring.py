"""Validation with real metrics: which files, what checkpoints go by, scores that are those of the enhanced files."""

import dataclasses
import json
from collections import Counter

import jax
import networks
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from pairs import speech_like, write_narrow_pairs

from saf_jax import audio, metrics
from saf_jax.config import Config, DataConfig, TrainConfig
from saf_jax.data.mix_command import MixSettings, make_mixtures
from saf_jax.data.pipeline import ValidationPair, validation_pairs
from saf_jax.enhancement import enhance
from saf_jax.training_run import HostState
from saf_jax.training_step import TrainState, init_state
from saf_jax.validation_scoring import ValidationScores, choose_pairs, mean_scores


def pair_of(name: str, snr_db: float) -> ValidationPair:
    clean = np.ones(4, np.float32)
    return ValidationPair(name, clean, clean * np.float32(1 + 10 ** (-snr_db / 20)))


def test_subset_is_spread_over_speakers_and_ratios():
    pairs = [pair_of(f"{speaker}_{i:03d}", 5.0 * (i % 4)) for speaker in ("p1", "p2", "p3") for i in range(40)]
    chosen = choose_pairs(pairs, 12)
    assert len({pair.name for pair in chosen}) == 12
    for speaker in ("p1", "p2", "p3"):
        ratios = [5 * (int(pair.name[3:]) % 4) for pair in chosen if pair.name.startswith(speaker)]
        assert sorted(ratios) == [0, 5, 10, 15]
    assert choose_pairs(pairs[::-1], 12) == chosen


@pytest.mark.parametrize(("speakers", "count"), [(24, 24), (24, 8), (5, 12)])
def test_subset_of_mixtures_is_spread_over_speakers_and_ratios(tmp_path, speakers, count):
    """Of a set that `saf-jax mix` made, whose names end in noise and ratio."""
    for kind, seconds, names in (
        ("clean", 0.5, [f"ls_{100 + i}-{k}" for i in range(speakers) for k in range(2)]),
        ("noise", 1.0, ["Baby cry", "rain", "sea"]),
    ):
        (tmp_path / kind).mkdir()
        for number, name in enumerate(names):
            sound = (
                speech_like(seconds, number) if kind == "clean" else np.random.default_rng(number).normal(0, 0.1, 16000)
            )
            soundfile.write(tmp_path / kind / f"{name}.wav", sound, 16000)
    make_mixtures(MixSettings(tmp_path / "clean", tmp_path / "noise", tmp_path / "set", (0.0, 5.0, 10.0, 15.0)))
    data = DataConfig(valid_clean=(str(tmp_path / "set" / "clean"),), valid_noisy=(str(tmp_path / "set" / "noisy"),))
    chosen = choose_pairs(validation_pairs(Config(data=data)), count)
    of_speaker = Counter(pair.name.split("-")[0] for pair in chosen)
    assert len(of_speaker) == min(count, speakers) and max(of_speaker.values()) <= -(-count // speakers)
    ratios = Counter(pair.name.rsplit("_", 1)[1] for pair in chosen)
    assert len(ratios) == 4 and max(ratios.values()) - min(ratios.values()) <= 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-5, 20)), max_size=12), st.integers(0, 15))
def test_subset_has_the_size_asked_for_and_no_file_twice(files, count):
    pairs = [pair_of(f"{speaker}-{i}", snr) for i, (speaker, snr) in enumerate(files)]
    names = [pair.name for pair in choose_pairs(pairs, count)]
    assert len(names) == len(set(names)) == min(count, len(pairs))


def test_means_leave_out_files_without_a_value():
    enhanced = [{"wb_pesq": 2.0}, {}, {"wb_pesq": 3.0}]
    assert mean_scores(("wb_pesq", "ssnr_db"), enhanced, [{"ssnr_db": 1.0}]) == {"wb_pesq": 2.5, "noisy_ssnr_db": 1.0}


class RunOnPaper:
    """What the scoring asks of a run, and what it tells it."""

    def __init__(self, config, workdir):
        self.config, self.workdir, self.host = config, workdir, HostState(valid_loss=0.5)
        self.logged, self.rated, self.heard, self.observers = [], [], [], [self]

    def log(self, event, **entry):
        self.logged.append((event, entry))

    def hear(self, step, files):
        self.heard.append((step, files))

    def rate(self, step, rating):
        self.rated.append((step, rating))


@pytest.fixture(scope="module")
def scored_config(tmp_path_factory):
    """A small config at 8 kHz with three validation pairs, two of which are scored."""
    folder = write_narrow_pairs(tmp_path_factory.mktemp("pairs"))
    config = networks.least()
    return dataclasses.replace(
        config,
        stft=dataclasses.replace(config.stft, sample_rate_hz=8000),
        data=DataConfig(valid_clean=(str(folder / "clean"),), valid_noisy=(str(folder / "noisy"),)),
        train=TrainConfig(score_files=2, score_delay_steps=3),
    )


@pytest.fixture(scope="module")
def states(scored_config) -> list[TrainState]:
    """Two states with different networks."""
    fresh = jax.jit(lambda: init_state(scored_config))()
    return [fresh.replace(params=networks.net_variables(scored_config, seed)["params"]) for seed in (0, 1)]


@pytest.fixture
def opened(scored_config, tmp_path):
    """Makes a run and its scores, whose processes are ended."""
    made = []

    def open_scores(name):
        run = RunOnPaper(scored_config, tmp_path / name)
        made.append(ValidationScores(run))
        return run, made[-1]

    yield open_scores
    for scores in made:
        scores.close()


def test_scores_are_those_of_the_enhanced_files_and_take_effect_later(scored_config, states, opened):
    run, scores = opened("run")
    scores.after_validation(7, states[0])
    for step in (7, 8, 9):
        scores.take_results(run, step)
    assert run.logged == run.rated == []
    scores.take_results(run, 10)
    [(event, entry)] = run.logged
    assert event == "scores" and entry["step"] == 7
    assert run.rated == [(7, entry["wb_pesq"])]

    def at_16_khz(samples):
        return audio.resample(samples, 8000, 16000)

    pairs = choose_pairs(validation_pairs(scored_config), 2)
    enhanced = [enhance(scored_config, states[0].best_variables, pair.noisy, 8000) for pair in pairs]
    for prefix, signals in (("", enhanced), ("noisy_", [pair.noisy for pair in pairs])):
        values = [metrics.si_sdr_db(at_16_khz(pair.clean), at_16_khz(signal)) for pair, signal in zip(pairs, signals)]
        assert entry[prefix + "si_sdr_db"] == pytest.approx(np.mean(values), abs=1e-4)
    assert {"wb_pesq", "noisy_wb_pesq", "stoi_percent", "ssnr_db"} <= entry.keys()
    [(step, files)] = run.heard
    assert step == 7 and [file.name for file in files] == [pair.name for pair in pairs]
    index = json.loads((run.workdir / "listen" / "files.json").read_text())
    assert index == {"step": 7, "names": [pair.name for pair in pairs]}
    kept = audio.read_mono(run.workdir / "listen" / "2" / "enhanced.flac", 8000)
    np.testing.assert_allclose(kept, enhanced[1], atol=1e-4)


def test_interrupted_run_gets_the_same_scores_at_the_same_steps(states, opened):
    """From the checkpoint of the validation itself, where they are computed again, and from one of a later step."""
    early, late = states
    whole, scores = opened("whole")
    scores.after_validation(7, early)
    at_7 = json.loads(json.dumps(scores.get_state(7)))
    scores.after_validation(9, late)
    at_9 = json.loads(json.dumps(scores.get_state(9)))
    assert [(item["step"], item["scores"] is None) for item in at_7 + at_9] == [(7, True), (7, False), (9, True)]
    scores.take_results(whole, 11)
    scores.finish(whole)
    assert [step for step, _ in whole.rated] == [7, 9]

    for saved, step, state in ((at_7, 7, early), (at_9, 9, late)):
        resumed, scores = opened(f"from_{step}")
        scores.set_state(saved, step, state)
        if step == 7:
            scores.after_validation(9, late)
        scores.finish(resumed)
        assert resumed.logged == whole.logged and resumed.rated == whole.rated
