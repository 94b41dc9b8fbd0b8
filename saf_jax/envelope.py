"""How far the spectral envelope of speech is from its target's: a differentiable relative of the log-likelihood ratio.

The measure LLR (`saf_jax.composite_measures`, which scores), the part of CSIG and COVL that PESQ does not see: linear
prediction of both signals, and how much worse the estimate's coefficients predict the target than the target's own.
A hole in the spectrum costs more than a hill of its size. How closely it follows is tested in tests/test_envelope.py.
"""

import jax
import jax.numpy as jnp

# LLR's frames, 30 ms every 7.5 ms, and its order at 10 kHz and above.
_HOP_SECONDS, _HOPS = 0.0075, 4
_ORDER, _LOW_RATE_HZ, _LOW_RATE_ORDER = 16, 10000, 10
# White noise 50 dB below each frame: without it the recursion loses its digits in float32 where bands are empty.
_RELATIVE_FLOOR = 1e-5
# And 70 dB below unit level: a silent frame has the envelope of white noise.
_ABSOLUTE_FLOOR = 1e-7


def log_likelihood_ratio(
    estimate: jax.Array, target: jax.Array, samples: jax.Array, sample_rate_hz: int
) -> tuple[jax.Array, jax.Array]:
    """Log-likelihood ratio of each signal, summed over its frames; the gain of a frame does not matter.

    All frames count, where the metric leaves out the worst 5 %.

    Args:
      estimate, target: float32 [B, N], near unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal.
      sample_rate_hz: of the samples.

    Returns:
      Sums, float32 [B], and the numbers of frames, int32 [B]. LLR is the one divided by the other.

    References:
      Hu, Loizou 2008, IEEE TASLP 16(1), equation 2.
    """
    order = _LOW_RATE_ORDER if sample_rate_hz < _LOW_RATE_HZ else _ORDER
    hop = max(1, round(sample_rate_hz * _HOP_SECONDS))
    wanted, found = (_autocorrelation(signal, hop, order) for signal in (target, estimate))
    left = _prediction_error(_linear_prediction(found), wanted)
    least = _prediction_error(_linear_prediction(wanted), wanted)
    # As many frames as the metric takes.
    frames = jnp.maximum(samples // hop - _HOPS, 0)
    mask = jnp.arange(wanted.shape[1]) < frames[:, None]
    return jnp.sum(jnp.where(mask, jnp.log(left / least), 0.0), axis=1), frames


def _autocorrelation(samples: jax.Array, hop: int, order: int) -> jax.Array:
    """Of each windowed frame, with the floors, at lags 0 to `order`: [B, N] -> [B, frames, order + 1]."""
    window = _HOPS * hop
    taper = 0.5 - 0.5 * jnp.cos(2 * jnp.pi * jnp.arange(1, window + 1) / (window + 1))
    fill = max(0, window - samples.shape[1])
    fill += -(samples.shape[1] + fill) % hop
    rows = jnp.pad(samples, ((0, 0), (0, fill))).reshape(len(samples), -1, hop)
    count = rows.shape[1] - _HOPS + 1
    frames = jnp.concatenate([rows[:, i : i + count] for i in range(_HOPS)], axis=-1) * taper
    # By way of the power spectrum, 25 times as fast on a CPU as a sum of products for each lag. What comes round at the
    # end of the transform meets none of the wanted lags.
    length = 1 << (window + order - 1).bit_length()
    spectrum = jnp.fft.rfft(frames, length)
    lags = jnp.fft.irfft(jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2, length)[..., : order + 1]
    floor = _RELATIVE_FLOOR * lags[..., 0] + _ABSOLUTE_FLOOR * jnp.sum(taper**2)
    return lags.at[..., 0].add(floor)


def _linear_prediction(lags: jax.Array) -> jax.Array:
    """Levinson-Durbin: lags [..., order + 1] -> coefficients [..., order + 1], the first of which is 1."""

    def longer(carry: tuple[jax.Array, ...], _: None) -> tuple[tuple[jax.Array, ...], None]:
        forward, backward, error = carry
        backward = jnp.concatenate([jnp.zeros_like(error), backward[..., :-1]], axis=-1)
        reflection = -jnp.sum(backward * lags, axis=-1, keepdims=True) / error
        return (forward + reflection * backward, backward + reflection * forward, error * (1 - reflection**2)), None

    one = jnp.zeros_like(lags).at[..., 0].set(1.0)
    # A loop: written out, its gradient takes XLA half a minute to compile.
    return jax.lax.scan(longer, (one, one, lags[..., :1]), length=lags.shape[-1] - 1)[0][0]


def _prediction_error(coefficients: jax.Array, lags: jax.Array) -> jax.Array:
    """Energy that a prediction leaves, a R a^T with R the Toeplitz matrix of the lags: [..., order + 1] -> [...]."""
    length = coefficients.shape[-1]
    total = jnp.sum(coefficients**2, axis=-1) * lags[..., 0]
    for k in range(1, length):
        total += 2 * jnp.sum(coefficients[..., : length - k] * coefficients[..., k:], axis=-1) * lags[..., k]
    return total
