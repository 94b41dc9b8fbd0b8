import jax
import jax.numpy as jnp
import numpy as np
import pytest
from descent import enhanced_by_descent, errors_with_and_without, finite_where_nothing_is, real_mixtures
from pairs import speech_like
from scipy.stats import spearmanr

from saf_jax import audio
from saf_jax.config import STFTConfig
from saf_jax.losses import negative_wb_pesq, perceptual_error
from saf_jax.metrics import wb_pesq
from saf_jax.perceptual import Disturbance, _ear, _over_time, disturbance, predicted_wb_pesq
from saf_jax.transforms import istft, stft

RATE = 16000
N = 3 * RATE
RESOLUTION = STFTConfig(RATE, 512, 256)
SNRS_DB = np.linspace(-5, 25, 12)


@jax.jit
def of_signals(estimate, target):
    level = jnp.sqrt(jnp.mean(target**2, axis=1, keepdims=True))
    return disturbance(estimate / level, target / level, jnp.full(len(target), N), RATE)


def disturbances(estimate, target):
    """Both kinds of each signal, the target brought to unit level: float64 [B] each."""
    return tuple(np.asarray(part, np.float64) for part in of_signals(np.float32(estimate), np.float32(target)))


def loudest(path):
    samples = np.resize(audio.read_mono(path, RATE), max(N, audio.read(path).samples.shape[-1]))
    energy = np.cumsum(np.concatenate([[0], samples.astype(np.float64) ** 2]))
    start = int(np.argmax(energy[N:] - energy[:-N]))
    return samples[start : start + N]


@pytest.fixture(scope="module")
def mixtures(audio_root):
    """Clean and noisy, float32 [12, N] each, from -5 to 25 dB."""
    speech, noise = (sorted((audio_root / "dev" / kind).glob("*.flac")) for kind in ("clean", "noise"))
    clean, rest = (np.stack([loudest(path) for path in paths[:: len(paths) // 12][:12]]) for paths in (speech, noise))
    gain = 10 ** (-SNRS_DB / 20) * np.sqrt(np.mean(clean**2, axis=1) / np.mean(rest**2, axis=1))
    return clean, clean + gain[:, None] * rest


def masked(clean, noisy):
    """What an enhancer might leave: half of the noise; what passes a Wiener gain with random errors."""
    a, b = (np.asarray(stft(x, RESOLUTION)) for x in (clean, noisy))
    gain = np.abs(a) ** 2 / (np.abs(a) ** 2 + np.abs(b - a) ** 2 + 1e-12)
    gain = np.clip(gain * np.exp(np.random.default_rng(0).normal(0, 0.5, gain.shape)), 0.05, 1)
    return 0.5 * (clean + noisy), np.asarray(istft(b * gain, RESOLUTION, N))


def test_it_ranks_as_wb_pesq_does(mixtures):
    """Real speech and noise at -5 to 25 dB: noisy, half of the noise, and masked with errors."""
    pytest.importorskip("pesq")
    clean, noisy = mixtures
    estimates = np.concatenate([noisy, *masked(clean, noisy)])
    cleans = np.concatenate([clean] * 3)
    predicted = np.asarray(predicted_wb_pesq(Disturbance(*disturbances(estimates, cleans))))
    measured = np.array([wb_pesq(c, e) for c, e in zip(cleans, estimates, strict=True)])
    assert measured.min() < 1.1
    assert measured.max() > 3.5
    # Measured: 0.996 over all, 1.000, 1.000 and 0.979 within the three kinds; 0.08 points off where nothing is masked.
    assert spearmanr(predicted, measured)[0] > 0.97
    for kind in range(3):
        part = slice(12 * kind, 12 * kind + 12)
        assert spearmanr(predicted[part], measured[part])[0] > 0.9
    assert np.sqrt(np.mean((predicted - measured)[:24] ** 2)) < 0.15


@pytest.mark.parametrize("error", [perceptual_error, negative_wb_pesq])
def test_following_its_gradient_raises_wb_pesq(mixtures, error):
    """Gains of one noisy recording, found by descent alone."""
    pytest.importorskip("pesq")
    clean, noisy = (x[4:5] / np.sqrt(np.mean(mixtures[0][4] ** 2)) for x in mixtures)
    enhanced = enhanced_by_descent(error, clean, noisy, steps=60)
    before, after = (wb_pesq(clean[0], x[0]) for x in (noisy, enhanced))
    # Measured: from 1.38 to 3.59 and 3.60.
    assert after > before + 1.5


def test_on_the_scale_of_opinions_mixtures_count_by_what_can_be_won():
    """A hundredth off the disturbance is worth most near a score of 3: next to nothing in the worst of mixtures."""
    raw = np.array([0.5, 2.8, 4.4])
    won = np.diff(predicted_wb_pesq(Disturbance(10 * (4.5 - np.stack([raw, raw + 0.01], 1)), np.zeros((3, 2)))))
    assert won[1, 0] == pytest.approx(0.01 * 1.3669, rel=1e-2)
    assert won[0, 0] < 0.2 * won[1, 0]
    assert won[2, 0] < 0.5 * won[1, 0]


def test_the_score_as_a_loss_is_the_mean_of_those_with_speech(audio_root):
    clean, noisy = (x[[6, 8, 10]] for x in real_mixtures(audio_root, N))
    batch, first = errors_with_and_without(negative_wb_pesq, clean, noisy, short=0)
    # Nothing of what is silent or empty counts.
    assert float(batch.count) == float(first.count) == 1
    assert float(batch.total) == pytest.approx(float(first.total), rel=1e-3)
    assert -4.7 < float(first.total) < -0.9
    assert finite_where_nothing_is(negative_wb_pesq, clean[:1])


def test_gains_do_not_matter():
    rng = np.random.default_rng(0)
    clean = rng.standard_normal((2, N)) * np.sin(np.arange(N) / 3000)
    noisy = clean + 0.3 * rng.standard_normal((2, N))
    wanted = disturbances(noisy, clean)
    for got in (disturbances(0.2 * noisy, clean), disturbances(noisy, 7 * clean)):
        np.testing.assert_allclose(got, wanted, rtol=2e-3)


def test_nothing_added_is_no_disturbance_and_more_noise_is_more():
    clean = np.float32([speech_like(3, 1)] * 5)
    noise = np.random.default_rng(1).standard_normal(N) * np.sqrt(np.mean(clean**2))
    symmetric, asymmetric = disturbances(clean + np.array([0, 0.01, 0.03, 0.1, 0.3])[:, None] * noise, clean)
    assert symmetric[0] < 0.05
    assert asymmetric[0] < 0.05
    assert (np.diff(symmetric) > 0.5).all()
    assert (np.diff(asymmetric) > 0.5).all()


def test_what_is_added_weighs_more_than_what_is_taken_away():
    """A tone in the midst of noise: P.862's asymmetry."""
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((1, N))
    tone = 3 * np.sin(2 * np.pi * 1500 * np.arange(N) / RATE)[None]
    added, removed = disturbances(noise + tone, noise)[1], disturbances(noise, noise + tone)[1]
    assert float(added[0]) > 2 * float(removed[0])


def test_bands_take_up_the_whole_power_between_their_edges():
    ear = _ear(RESOLUTION)
    power_per_bin = (ear.bands * ear.width).sum(axis=1)
    # 31.25 * 6.9e-6 times the input filter's 2.818 squared at the upper end, nothing at the lower.
    assert power_per_bin[0] == 0
    assert power_per_bin[200] == pytest.approx(31.25 * 6.910853e-6 * 2.818**2, rel=0.01)
    assert ((ear.bands > 0).sum(axis=0) > 0).all()


def test_norms_over_time():
    """Plain loops over segments of 20 frames that overlap by half, the last one cut off at the end."""
    values, frames = np.random.default_rng(3).uniform(0, 50, (2, 47)), (47, 33)
    got = _over_time(jnp.float32(values), jnp.arange(47) < jnp.array(frames)[:, None])
    for row, count, result in zip(values, frames, got, strict=True):
        segments = [row[i : min(i + 20, count)] for i in range(0, count, 10)]
        squares = np.concatenate([np.full(len(s), np.mean(s**6) ** (1 / 3)) for s in segments])
        assert float(result) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
