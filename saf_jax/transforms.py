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
    padding = (frames + window // hop - 1) * hop - window // 2 - samples.shape[-1]
    lead = [(0, 0)] * (samples.ndim - 1)
    return frame_spectra(jnp.pad(samples, [*lead, (window // 2, padding)]), config)


def frame_spectra(samples: jax.Array, config: STFTConfig) -> jax.Array:
    """The spectra of all windows that lie in whole hops of samples.

    Args:
      samples: float32 [..., N], N a multiple of `hop_samples`, at least a window.
      config: window and hop.

    Returns:
      complex64 [..., T, F]; frame t is that of the window that begins at sample `t * hop_samples`.
    """
    hop, ratio = config.hop_samples, config.window_samples // config.hop_samples
    # Framing by reshape: with hop a divisor of the window, frame t is `ratio` neighbouring rows of a [rows, hop] view.
    rows = samples.reshape(*samples.shape[:-1], -1, hop)
    frames = rows.shape[-2] - ratio + 1
    framed = jnp.concatenate([rows[..., i : i + frames, :] for i in range(ratio)], axis=-1)
    return jnp.fft.rfft(framed * hann(config.window_samples))


def overlap_add(spectrum: jax.Array, config: STFTConfig) -> jax.Array:
    """Windowed inverse transforms, added where they overlap: complex64 [..., T, F] -> float32 [..., rows, hop_samples].

    Frame t lies in the rows t ... t + ratio - 1 of T + ratio - 1, with ratio = window / hop. To be divided by
    `window_sums`.
    """
    window, hop = config.window_samples, config.hop_samples
    frames, ratio = spectrum.shape[-2], window // hop
    framed = jnp.fft.irfft(spectrum, n=window) * hann(window)
    rows = framed.reshape(*spectrum.shape[:-2], frames, ratio, hop)
    lead = [(0, 0)] * (spectrum.ndim - 2)
    return sum(jnp.pad(rows[..., i, :], [*lead, (i, ratio - 1 - i), (0, 0)]) for i in range(ratio))


def window_sums(rows: jax.Array, frames: int | None, config: STFTConfig) -> jax.Array:
    """The sum of squared windows over the frames that exist: constant inside a signal, smaller at its two ends.

    Args:
      rows: int32 [...], which rows of `overlap_add`, counted from the signal's first.
      frames: number T of the signal's frames; None: more than the rows reach.
      config: window and hop.

    Returns:
      float32 [..., hop_samples], at least 1e-8.
    """
    ratio = config.window_samples // config.hop_samples
    index = rows[..., None] - jnp.arange(ratio)
    exists = index >= 0 if frames is None else (index >= 0) & (index < frames)
    squared = jnp.asarray(hann(config.window_samples) ** 2).reshape(ratio, config.hop_samples)
    # Some GPUs multiply float32 with 10 bits unless told otherwise, which would change the signal's level.
    return jnp.maximum(jnp.matmul(exists.astype(jnp.float32), squared, precision="highest"), 1e-8)


def istft(spectrum: jax.Array, config: STFTConfig, length: int) -> jax.Array:
    """Inverse of `stft` by weighted overlap-add (Griffin & Lim 1984, equation 6).

    Args:
      spectrum: complex64 [..., T, F].
      config: window and hop.
      length: number of samples N to return, at most what the T frames cover.

    Returns:
      float32 [..., N]. `istft(stft(x), config, N)` equals x to rounding, for every N from 1 on.
    """
    frames, start = spectrum.shape[-2], config.window_samples // 2
    rows = overlap_add(spectrum, config)
    signal = rows / window_sums(jnp.arange(rows.shape[-2]), frames, config)
    return signal.reshape(*spectrum.shape[:-2], -1)[..., start : start + length]
