"""What the tests of the differentiable measures share."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from saf_jax import audio
from saf_jax.config import STFTConfig
from saf_jax.losses import Term
from saf_jax.transforms import istft, stft

RATE = 16000
_RESOLUTION = STFTConfig(RATE, 512, 256)


def real_mixtures(audio_root: Path, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Clean and noisy, [16, samples] each: real speech and noise at -5 to 25 dB, the noisy ones at unit level."""
    speech, noise = (sorted((audio_root / "dev" / kind).glob("*.flac")) for kind in ("clean", "noise"))
    count = min(len(speech), len(noise), 16)
    clean, rest = (
        np.stack([np.resize(audio.read_mono(path, RATE), samples) for path in paths[:: len(paths) // count][:count]])
        for paths in (speech, noise)
    )
    snr_db = np.linspace(-5, 25, count)
    gain = 10 ** (-snr_db / 20) * np.sqrt(np.mean(clean**2, axis=1) / np.mean(rest**2, axis=1))
    noisy = clean + gain[:, None] * rest
    level = np.sqrt(np.mean(noisy**2, axis=1, keepdims=True))
    return clean / level, noisy / level


def enhanced_by_descent(
    error: Callable[..., Term], clean: np.ndarray, noisy: np.ndarray, steps: int = 40
) -> np.ndarray:
    """The noisy signals [B, N] with gains for each bin that descent along the error's gradient alone found."""
    samples = noisy.shape[1]
    spectrum = stft(jnp.asarray(noisy), _RESOLUTION)

    def enhanced(gains):
        return istft(spectrum * jax.nn.sigmoid(gains), _RESOLUTION, samples)

    def loss(gains):
        total, count = error(enhanced(gains), clean, jnp.full(len(noisy), samples), RATE)
        return total / count

    optimizer = optax.adam(0.2)

    @jax.jit
    def descend(gains):
        def step(carry, _):
            gains, state = carry
            value, gradient = jax.value_and_grad(loss)(gains)
            updates, state = optimizer.update(gradient, state)
            return (gains + updates, state), value

        return jax.lax.scan(step, (gains, optimizer.init(gains)), length=steps)

    (gains, _), values = descend(jnp.full(spectrum.shape, 2.0))
    assert np.isfinite(values).all()
    return np.asarray(enhanced(gains))


def finite_where_nothing_is(error: Callable[..., Term], clean: np.ndarray) -> bool:
    """Whether the error's gradient is finite for all pairs of clean speech, [1, N], and silence."""
    silent = np.zeros_like(clean)

    @jax.jit
    def gradient(estimate, target):
        return jax.grad(lambda e: error(e, target, jnp.array([clean.shape[1]]), RATE).total)(estimate)

    pairs = ((silent, silent), (silent, clean), (clean, silent), (clean, clean))
    return all(np.isfinite(gradient(*pair)).all() for pair in pairs)


def errors_with_and_without(
    error: Callable[..., Term], clean: np.ndarray, noisy: np.ndarray, short: int
) -> tuple[Term, Term]:
    """Of three signals [3, N]: one cut, one with a silent target, one of `short` samples; and of the first alone."""
    length = clean.shape[1]
    samples = np.array([length - 4000, length, short])
    inside = np.arange(length) < samples[:, None]
    clean, noisy = clean * inside * np.float32([[1], [0], [1]]), noisy * inside
    of = jax.jit(lambda estimate, target, samples: error(estimate, target, samples, RATE))
    first = slice(None, length - 4000)
    return of(noisy, clean, samples), of(noisy[:1, first], clean[:1, first], samples[:1])
