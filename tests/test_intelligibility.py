import jax
import numpy as np
import pytest
from descent import (
    enhanced_by_descent,
    errors_with_and_without,
    finite_where_nothing_is,
    real_mixtures,
)
from pairs import speech_like
from scipy.stats import spearmanr

from saf_jax.intelligibility import envelope_correlation
from saf_jax.losses import intelligibility_error
from saf_jax.stoi import stoi

RATE = 16000
N = 3 * RATE

correlation = jax.jit(lambda estimate, target, samples: envelope_correlation(estimate, target, samples, RATE))


def speech_in_noise(seeds, level=0.5):
    """Clean at unit level and noisy, float32 [B, N] each, with a pause of a second in each."""
    clean = np.float32([speech_like(3, seed) for seed in seeds])
    clean[:, RATE : 2 * RATE] = 0
    clean /= np.sqrt(np.mean(clean**2, axis=1, keepdims=True))
    noise = np.random.default_rng(seeds[0]).standard_normal(clean.shape).astype(np.float32)
    return clean, clean + level * noise


def test_it_follows_stoi_on_real_mixtures(audio_root):
    clean, noisy = real_mixtures(audio_root, N)
    total, segments = correlation(noisy, clean, np.full(len(clean), N))
    predicted = np.asarray(total) / np.asarray(segments)
    measured = np.array([stoi(c.astype(float), n.astype(float), RATE) for c, n in zip(clean, noisy, strict=True)])
    assert measured.min() < 0.75
    assert measured.max() > 0.97
    assert spearmanr(predicted, measured)[0] > 0.99
    assert np.abs(predicted - measured).mean() < 0.01


def test_pauses_are_left_out():
    """Noise in the pause alone: STOI does not hear it."""
    clean, _ = speech_in_noise([1])
    noisy = clean.copy()
    noisy[:, RATE + 1000 : 2 * RATE - 1000] = 0.3 * np.random.default_rng(0).standard_normal(RATE - 2000)
    total, segments = correlation(noisy, clean, np.array([N]))
    assert float(total[0] / segments[0]) > 0.99
    assert int(segments[0]) < 0.75 * (N / 205)


def test_a_gain_does_not_matter():
    clean, noisy = speech_in_noise([1, 2])
    wanted, _ = correlation(noisy, clean, np.full(2, N))
    for estimate, target in ((0.2 * noisy, clean), (noisy, 5 * clean)):
        np.testing.assert_allclose(correlation(estimate, target, np.full(2, N)).total, wanted, rtol=1e-3)


def test_what_lies_beyond_the_end_and_silent_or_short_targets_do_not_count():
    (total, count), alone = errors_with_and_without(intelligibility_error, *speech_in_noise([1, 2, 3]), short=5000)
    assert float(count) == float(alone.count) > 0
    assert float(total) == pytest.approx(float(alone.total), rel=1e-4)


def test_a_target_too_quiet_to_be_heard_does_not_count():
    """STOI scales what it compares: the dither of a speech-free target would count as speech."""
    clean, noisy = speech_in_noise([1, 2])
    clean[1] *= 1e-4
    total, count = intelligibility_error(noisy, clean, np.array([N, N]), RATE)
    alone = intelligibility_error(noisy[:1], clean[:1], np.array([N]), RATE)
    assert float(count) == float(alone.count) > 0
    assert float(total) == pytest.approx(float(alone.total), rel=1e-4)


def test_gradients_are_finite_where_there_is_nothing():
    assert finite_where_nothing_is(intelligibility_error, speech_in_noise([1])[0])


def test_following_its_gradient_raises_stoi():
    """Gains of one noisy signal, found by descent alone."""
    clean, noisy = speech_in_noise([4], level=2.0)
    enhanced = enhanced_by_descent(intelligibility_error, clean, noisy)
    before, after = (stoi(clean[0].astype(float), x[0].astype(float), RATE) for x in (noisy, enhanced))
    assert after > before + 0.1
