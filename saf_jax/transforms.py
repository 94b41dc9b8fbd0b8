"""Short-time Fourier transform and its inverse, as matrix-free jnp functions that run under jit on every backend."""

import jax
import jax.numpy as jnp
import numpy as np

from saf_jax.config import STFTConfig


def hann(window_samples: int) -> np.ndarray:
    """Periodic Hann window: float32 [window_samples]."""
    n = np.arange(window_samples)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n / window_samples)).astype(np.float32)


def stft(samples: jax.Array, config: STFTConfig) -> jax.Array:
    """Short-time Fourier transform, centred, zeros beyond both ends.

    Frame t is centred on sample `t * hop_samples`; the last frame is the last one whose window touches the signal, so
    that every sample can be recovered and appended zeros append only frames of zeros.

    Args:
      samples: float32 [..., N], at least one sample.
      config: window and hop.

    Returns:
      complex64 [..., T, F] with T = `config.frames(N)` and F = `config.bins`. The first 1 + N // hop_samples frames
      equal `librosa.stft(..., center=True, pad_mode="constant")`.
    """
    window, hop = config.window_samples, config.hop_samples
    frames = config.frames(samples.shape[-1])
    ratio = window // hop
    padding = (frames + ratio - 1) * hop - window // 2 - samples.shape[-1]
    lead = [(0, 0)] * (samples.ndim - 1)
    padded = jnp.pad(samples, [*lead, (window // 2, padding)])
    # Framing by reshape: with hop a divisor of the window, frame t is `ratio` neighbouring rows of a [rows, hop] view.
    rows = padded.reshape(*samples.shape[:-1], frames + ratio - 1, hop)
    framed = jnp.concatenate([rows[..., i : i + frames, :] for i in range(ratio)], axis=-1)
    return jnp.fft.rfft(framed * hann(window))


def istft(spectrum: jax.Array, config: STFTConfig, length: int) -> jax.Array:
    """Inverse of `stft` by weighted overlap-add (Griffin & Lim 1984, equation 6).

    Args:
      spectrum: complex64 [..., T, F].
      config: window and hop.
      length: number of samples N to return, at most what the T frames cover.

    Returns:
      float32 [..., N]. `istft(stft(x), config, N)` equals x to rounding, for every N from 1 on.
    """
    window, hop = config.window_samples, config.hop_samples
    frames, ratio = spectrum.shape[-2], window // hop
    framed = jnp.fft.irfft(spectrum, n=window) * hann(window)
    rows = framed.reshape(*spectrum.shape[:-2], frames, ratio, hop)
    lead = [(0, 0)] * (spectrum.ndim - 2)
    summed = sum(jnp.pad(rows[..., i, :], [*lead, (i, ratio - 1 - i), (0, 0)]) for i in range(ratio))
    # The sum of squared windows over the frames that exist: constant inside, smaller at the two ends.
    squared = jnp.asarray(hann(window) ** 2).reshape(ratio, hop)
    index = jnp.arange(frames + ratio - 1)[:, None] - jnp.arange(ratio)[None, :]
    norm = ((index >= 0) & (index < frames)).astype(jnp.float32) @ squared
    signal = (summed / jnp.maximum(norm, 1e-8)).reshape(*spectrum.shape[:-2], -1)
    return signal[..., window // 2 : window // 2 + length]
