"""P.56 active speech level against a literal transcription of the recommendation, and on real mixtures."""

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from speechlike import speechlike

from saf_jax.audio import list_pairs, read_mono
from saf_jax.data.active_level import active_level, active_level_db, rms_db, snr_db


def literal_p56(samples, rate):
    """Method B, sample by sample: the recommendation's own loop over thresholds with hangover counters."""
    decay, hangover = math.exp(-1 / (rate * 0.03)), round(0.2 * rate)
    thresholds = [2.0**-k for k in range(16, -1, -1)]
    active, waited = [0] * 17, [hangover] * 17
    p = q = energy = 0.0
    for sample in samples:
        energy += sample * sample
        p = decay * p + (1 - decay) * abs(sample)
        q = decay * q + (1 - decay) * p
        for j, threshold in enumerate(thresholds):
            if q >= threshold:
                active[j] += 1
                waited[j] = 0
            elif waited[j] < hangover:
                active[j] += 1
                waited[j] += 1
    previous = None
    for j in range(17):
        if not active[j]:
            break
        level = 10 * math.log10(energy / active[j])
        margin = level - 20 * math.log10(thresholds[j])
        if margin <= 15.9:
            if previous is None:
                return level
            part = (previous[1] - 15.9) / (previous[1] - margin)
            return previous[0] + part * (level - previous[0])
        previous = level, margin
    return previous[0] if previous else -math.inf


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_recommendation(rate, seed):
    rng = np.random.default_rng(seed)
    samples = speechlike(rng, 2 * rate, rate) * rng.uniform(0.05, 2)
    assert active_level_db(samples, rate) == pytest.approx(literal_p56(samples.astype(float), rate), abs=1e-6)


def test_tone_with_pauses_has_the_level_of_the_tone():
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(16000) / 16000)
    speech = np.concatenate([tone, np.zeros(48000), tone])
    level, activity = active_level(speech, 16000)
    expected = 20 * math.log10(0.5) - 3.01
    # The hangover of 0.2 s after each tone counts as active: 2.4 s instead of 2 s, 0.8 dB.
    assert expected - 1.0 < level < expected
    assert activity == pytest.approx(2.4 / 5, abs=0.03)
    assert rms_db(speech) < level - 3


def test_silence_has_no_level():
    assert active_level(np.zeros(1000), 16000) == (-math.inf, 0.0)
    assert active_level(np.zeros(0), 16000) == (-math.inf, 0.0)
    assert active_level(np.full(2000, 1e-9), 16000) == (-math.inf, 0.0)
    assert rms_db(np.zeros(3)) == -math.inf


@given(gain_db=st.floats(-30, 10), seed=st.integers(0, 20))
def test_level_follows_the_gain(gain_db, seed):
    speech = speechlike(np.random.default_rng(seed), 16000).astype(np.float64)
    before, after = active_level_db(speech, 16000), active_level_db(speech * 10 ** (gain_db / 20), 16000)
    # Exact for gains of 6.02 dB; in between the interpolation bends a little.
    assert after - before == pytest.approx(gain_db, abs=0.35)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"samples must be \[N\]"):
        active_level(np.zeros((2, 5)), 16000)


@pytest.mark.skipif("SAF_AUDIO" not in os.environ, reason="SAF_AUDIO does not name a folder of real recordings")
def test_official_snrs_of_voicebank_demand():
    folder = os.path.join(os.environ["SAF_AUDIO"], "voicebank_demand", "test")
    errors = []
    for pair in list_pairs(os.path.join(folder, "clean"), os.path.join(folder, "noisy")):
        clean, noisy = read_mono(pair.clean, 16000), read_mono(pair.noisy, 16000)
        measured = snr_db(clean, noisy - clean, 16000)
        errors.append(min(abs(measured - official) for official in (2.5, 7.5, 12.5, 17.5)))
    assert len(errors) == 59
    assert np.median(errors) <= 0.05
    assert np.quantile(errors, 0.9) <= 0.2


def test_digital_silence_around_speech_is_not_active():
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(16000) / 16000)
    level, activity = active_level(tone, 16000)
    padded_level, padded_activity = active_level(np.concatenate([np.zeros(32000), tone]), 16000)
    assert padded_level == pytest.approx(level, abs=0.01) and padded_activity == pytest.approx(activity / 3, abs=0.01)


def test_long_signals_in_blocks_have_the_level_of_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    samples = np.concatenate([part for _ in range(4) for part in (speechlike(rng, 20000), np.zeros(9000))])
    whole = active_level(samples, 16000)
    for block in (1000, 16384, 30011):
        monkeypatch.setattr("saf_jax.data.active_level._BLOCK", block)
        assert active_level(samples, 16000) == pytest.approx(whole, rel=1e-9)
