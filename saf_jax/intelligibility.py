"""How well speech can be followed: a differentiable relative of STOI.

The measure of Taal et al. (`saf_jax.stoi`, which scores) on signals as they are: third-octave envelopes are taken at
the signals' own rate with STOI's window of 25.6 ms, silent frames are left out of the envelopes instead of the samples.
Fu et al. 2018 (arXiv 1709.03658) trained with STOI first. How closely it follows is tested in
tests/test_intelligibility.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# STOI's, in seconds and Hz: its analysis runs at 10 kHz with windows of 256 samples and transforms of 512.
_HOP_SECONDS, _BIN_HZ = 128 / 10000, 10000 / 512
_BANDS, _LOWEST_CENTRE_HZ = 15, 150.0
_SEGMENT_FRAMES = 30
_SILENCE_DB = 40.0
_CLIP = 1.0 + 10.0 ** (15.0 / 20.0)
# Power, at unit level, below which an envelope is as good as silent: keeps the gradient of the root finite.
_TINY = 1e-8


class Correlation(NamedTuple):
    """Of each signal.

    Attributes:
      total: float32 [B], correlations of the envelopes, summed over segments and averaged over bands.
      segments: int32 [B], their number: 0 where fewer than 30 frames (0.4 s) hold speech. STOI is `total / segments`.
    """

    total: jax.Array
    segments: jax.Array


class _Analysis(NamedTuple):
    """Constants for one rate.

    Attributes:
      hop: samples between frames; a window has two.
      transform: float32 [window, 2 K], real and imaginary parts of the windowed transform, K bins.
      bands: float32 [K, bands], 1 where a bin belongs to a band.
      window: float32 [window].
    """

    hop: int
    transform: np.ndarray
    bands: np.ndarray
    window: np.ndarray


def envelope_correlation(
    estimate: jax.Array, target: jax.Array, samples: jax.Array, sample_rate_hz: int
) -> Correlation:
    """Short-time correlation of third-octave envelopes; a gain of either signal does not matter.

    Args:
      estimate, target: float32 [B, N], near unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal.
      sample_rate_hz: of the samples, at least 8600.

    References:
      Taal et al. 2011, IEEE TASLP 19(7), equations 1 to 6.
    """
    analysis = _analysis(sample_rate_hz)
    rows = -(-target.shape[1] // analysis.hop)
    frames = max(rows - 1, _SEGMENT_FRAMES)
    fill = (frames + 1) * analysis.hop - target.shape[1]
    wanted, found = (_frames(jnp.pad(signal, ((0, 0), (0, fill))), analysis) for signal in (target, estimate))
    inside = jnp.arange(frames) < (samples // analysis.hop - 1)[:, None]

    energy = jnp.sum((wanted * analysis.window) ** 2, axis=-1) * inside
    active = inside & (energy > 10 ** (-_SILENCE_DB / 10) * jnp.max(energy, axis=1, keepdims=True))
    # Frames with speech move together, as if the silent ones had never been there.
    order = jnp.argsort(~active, axis=1, stable=True)[..., None]
    wanted, found = (jnp.take_along_axis(_envelopes(signal, analysis), order, axis=1) for signal in (wanted, found))
    segments = jnp.maximum(jnp.sum(active, axis=1) - _SEGMENT_FRAMES + 1, 0)

    wanted, found = _segments(wanted), _segments(found)
    # Equation 3: the judged envelope gets the energy of the clean one, then is limited to -15 dB of distortion.
    gain = jnp.sqrt(_energy(wanted) / _energy(found))
    limited = jnp.minimum(found * gain, wanted * _CLIP)
    wanted, limited = (part - jnp.mean(part, axis=2, keepdims=True) for part in (wanted, limited))
    correlation = jnp.sum(wanted * limited, axis=2, keepdims=True) / jnp.sqrt(_energy(wanted) * _energy(limited))
    per_segment = jnp.mean(correlation[:, :, 0], axis=-1)
    counted = jnp.arange(per_segment.shape[1]) < segments[:, None]
    return Correlation(jnp.sum(jnp.where(counted, per_segment, 0.0), axis=1), segments)


def _frames(samples: jax.Array, analysis: _Analysis) -> jax.Array:
    """Windows that overlap by half: [B, (T + 1) hop] -> [B, T, window]."""
    rows = samples.reshape(len(samples), -1, analysis.hop)
    return jnp.concatenate([rows[:, :-1], rows[:, 1:]], axis=-1)


def _envelopes(frames: jax.Array, analysis: _Analysis) -> jax.Array:
    """Root of the power in third-octave bands (equation 1): [B, T, window] -> [B, T, bands]."""
    real, imaginary = jnp.split(frames @ analysis.transform, 2, axis=-1)
    return jnp.sqrt((real**2 + imaginary**2) @ analysis.bands + _TINY)


def _segments(envelopes: jax.Array) -> jax.Array:
    """All runs of 30 frames: [B, T, bands] -> [B, T - 29, 30, bands]."""
    count = envelopes.shape[1] - _SEGMENT_FRAMES + 1
    return jnp.stack([envelopes[:, i : i + count] for i in range(_SEGMENT_FRAMES)], axis=2)


def _energy(segments: jax.Array) -> jax.Array:
    return jnp.sum(segments**2, axis=2, keepdims=True) + _TINY


@functools.cache
def _analysis(sample_rate_hz: int) -> _Analysis:
    hop = round(sample_rate_hz * _HOP_SECONDS)
    window = np.hanning(2 * hop + 2)[1:-1]
    edges_hz = _LOWEST_CENTRE_HZ * 2.0 ** ((2.0 * np.arange(_BANDS + 1) - 1.0) / 6.0)
    edges = np.round(edges_hz / _BIN_HZ).astype(int)
    bins = np.arange(edges[0], edges[-1])
    turns = np.outer(np.arange(2 * hop) / sample_rate_hz, bins * _BIN_HZ)
    # The mean square of a window of unit level is 1.
    transform = np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)
    transform *= (window / np.sqrt(np.sum(window**2)))[:, None]
    bands = (bins[:, None] >= edges[:-1]) & (bins[:, None] < edges[1:])
    return _Analysis(hop, *(np.asarray(array, np.float32) for array in (transform, bands, window)))
