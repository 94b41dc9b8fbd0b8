import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pairs import speech_like
from scipy.stats import spearmanr

from saf_jax import audio
from saf_jax.config import STFTConfig
from saf_jax.intelligibility import envelope_correlation
from saf_jax.losses import intelligibility_error
from saf_jax.stoi import stoi
from saf_jax.transforms import istft, stft

RATE = 16000
N = 3 * RATE
RESOLUTION = STFTConfig(RATE, 512, 256)

correlation = jax.jit(lambda estimate, target, samples: envelope_correlation(estimate, target, samples, RATE))
error = jax.jit(lambda estimate, target, samples: intelligibility_error(estimate, target, samples, RATE))


def speech_in_noise(seeds, level=0.5):
    """Clean at unit level and noisy, float32 [B, N] each, with a pause of a second in each."""
    clean = np.float32([speech_like(3, seed) for seed in seeds])
    clean[:, RATE : 2 * RATE] = 0
    clean /= np.sqrt(np.mean(clean**2, axis=1, keepdims=True))
    noise = np.random.default_rng(seeds[0]).standard_normal(clean.shape).astype(np.float32)
    return clean, clean + level * noise


def test_it_follows_stoi_on_real_mixtures(audio_root):
    """Real speech and noise at -5 to 25 dB."""
    speech, noise = (sorted((audio_root / "dev" / kind).glob("*.flac")) for kind in ("clean", "noise"))
    count = min(len(speech), len(noise), 16)
    clean, rest = (
        np.stack([np.resize(audio.read_mono(path, RATE), N) for path in paths[:: len(paths) // count][:count]])
        for paths in (speech, noise)
    )
    snr_db = np.linspace(-5, 25, count)
    gain = 10 ** (-snr_db / 20) * np.sqrt(np.mean(clean**2, axis=1) / np.mean(rest**2, axis=1))
    noisy = clean + gain[:, None] * rest
    level = np.sqrt(np.mean(noisy**2, axis=1, keepdims=True))
    total, segments = correlation(noisy / level, clean / level, np.full(count, N))
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
    clean, noisy = speech_in_noise([1, 2, 3])
    samples = np.array([N - 4000, N, 5000])
    clean[1] = 0
    inside = np.arange(N) < samples[:, None]
    clean, noisy = clean * inside, noisy * inside
    total, count = error(noisy, clean, samples)
    alone = error(noisy[:1, : N - 4000], clean[:1, : N - 4000], samples[:1])
    assert float(count) == float(alone.count) > 0
    assert float(total) == pytest.approx(float(alone.total), rel=1e-4)


def test_gradients_are_finite_where_there_is_nothing():
    silent = np.zeros((1, N), np.float32)
    clean, _ = speech_in_noise([1])

    @jax.jit
    def gradient(estimate, target):
        return jax.grad(lambda e: intelligibility_error(e, target, jnp.array([N]), RATE).total)(estimate)

    for estimate, target in ((silent, silent), (silent, clean), (clean, silent), (clean, clean)):
        assert np.isfinite(gradient(estimate, target)).all()


def test_following_its_gradient_raises_stoi():
    """Gains of one noisy signal, found by descent alone."""
    clean, noisy = speech_in_noise([4], level=2.0)
    spectrum = stft(jnp.asarray(noisy), RESOLUTION)

    def enhanced(gains):
        return istft(spectrum * jax.nn.sigmoid(gains), RESOLUTION, N)

    def loss(gains):
        total, count = intelligibility_error(enhanced(gains), clean, jnp.array([N]), RATE)
        return total / count

    optimizer = optax.adam(0.2)

    @jax.jit
    def descend(gains):
        def step(carry, _):
            gains, state = carry
            updates, state = optimizer.update(jax.grad(loss)(gains), state)
            return (gains + updates, state), None

        return jax.lax.scan(step, (gains, optimizer.init(gains)), length=40)[0][0]

    gains = descend(jnp.full(spectrum.shape, 2.0))
    before, after = (stoi(clean[0].astype(float), np.asarray(x, float)[0], RATE) for x in (noisy, enhanced(gains)))
    assert after > before + 0.1
