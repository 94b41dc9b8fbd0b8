import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descent import (
    enhanced_by_descent,
    errors_with_and_without,
    finite_where_nothing_is,
    real_mixtures,
)
from pairs import speech_like
from scipy.linalg import solve_toeplitz, toeplitz
from scipy.stats import spearmanr

from saf_jax.composite_measures import llr
from saf_jax.config import STFTConfig
from saf_jax.envelope import log_likelihood_ratio
from saf_jax.losses import envelope_error
from saf_jax.transforms import istft, stft

RATE = 16000
N = 2 * RATE
RESOLUTION = STFTConfig(RATE, 512, 256)

ratio = jax.jit(lambda estimate, target, samples: log_likelihood_ratio(estimate, target, samples, RATE))


def speech_in_noise(seeds, level=0.1):
    """Clean at unit level and noisy, float32 [B, N] each."""
    clean = np.float32([speech_like(2, seed) for seed in seeds])
    clean /= np.sqrt(np.mean(clean**2, axis=1, keepdims=True))
    noise = np.random.default_rng(seeds[0]).standard_normal(clean.shape).astype(np.float32)
    return clean, clean + level * noise


def test_it_follows_llr_on_real_mixtures(audio_root):
    clean, noisy = real_mixtures(audio_root, N)
    total, frames = ratio(noisy, clean, np.full(len(clean), N))
    predicted = np.asarray(total) / np.asarray(frames)
    measured = np.array([llr(c, n, RATE) for c, n in zip(clean, noisy, strict=True)])
    assert measured.max() - measured.min() > 1
    # Measured: 0.97.
    assert spearmanr(predicted, measured)[0] > 0.95
    # The worst 5 % of the frames count here.
    assert 0 < (predicted - measured).mean() < 0.15


@pytest.mark.parametrize(("rate", "order"), [(16000, 16), (8000, 10)])
def test_it_is_the_ratio_of_prediction_errors_solved_directly(rate, order):
    """With the two floors, which the metric does not have, frame by frame."""
    rng = np.random.default_rng(order)
    clean = np.convolve(rng.standard_normal(2000), [1, 0.9, 0.5, -0.3])[:2000]
    guess = clean + 0.3 * rng.standard_normal(2000)
    hop = round(0.0075 * rate)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1, 4 * hop + 1) / (4 * hop + 1))
    wanted = []
    for start in range(0, hop * (2000 // hop - 4), hop):
        lags = []
        for signal in (clean, guess):
            frame = signal[start : start + 4 * hop] * taper
            lags.append(np.array([frame[: len(frame) - k] @ frame[k:] for k in range(order + 1)]))
            lags[-1][0] += 1e-5 * lags[-1][0] + 1e-7 * np.sum(taper**2)
        least, left = (np.concatenate([[1], -solve_toeplitz(r[:-1], r[1:])]) for r in lags)
        wanted.append(np.log((left @ toeplitz(lags[0]) @ left) / (least @ toeplitz(lags[0]) @ least)))
    total, frames = log_likelihood_ratio(
        jnp.float32(guess)[None], jnp.float32(clean)[None], jnp.array([2000]), sample_rate_hz=rate
    )
    assert int(frames[0]) == len(wanted)
    assert float(total[0]) == pytest.approx(sum(wanted), rel=1e-3)


def test_it_is_0_for_the_target_at_any_level():
    clean, _ = speech_in_noise([1, 2])
    for gain in (1.0, 3.0, 0.3):
        total, frames = ratio(gain * clean, clean, np.full(2, N))
        assert np.abs(np.asarray(total) / np.asarray(frames)).max() < 2e-3


def test_a_hole_costs_more_than_a_hill():
    """The quarter of the bands above 6 kHz, 20 dB quieter and 20 dB louder, in a signal that has all bands."""
    clean = np.random.default_rng(0).standard_normal((1, N)).astype(np.float32)
    spectrum = stft(jnp.asarray(clean), RESOLUTION)
    high = jnp.arange(RESOLUTION.bins) * RATE / 512 > 6000
    costs = []
    for gain in (0.1, 10.0):
        total, frames = ratio(istft(spectrum * jnp.where(high, gain, 1.0), RESOLUTION, N), clean, np.array([N]))
        costs.append(float(total[0] / frames[0]))
    assert costs[0] > 1.5 * costs[1] > 0


def test_what_lies_beyond_the_end_and_silent_or_short_targets_do_not_count():
    (total, count), alone = errors_with_and_without(envelope_error, *speech_in_noise([1, 2, 3]), short=500)
    assert float(count) == float(alone.count) > 0
    assert float(total) == pytest.approx(float(alone.total), rel=1e-4)


def test_gradients_are_finite_where_there_is_nothing():
    assert finite_where_nothing_is(envelope_error, speech_in_noise([1])[0])


def test_following_its_gradient_lowers_llr():
    """Gains of one noisy signal, found by descent alone."""
    clean, noisy = speech_in_noise([4], level=0.3)
    before, after = (llr(clean[0], x[0], RATE) for x in (noisy, enhanced_by_descent(envelope_error, clean, noisy)))
    assert after < 0.5 * before
