"""From samples to the network's input and from its output back to samples; training and enhancement share it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from saf_jax.config import Config
from saf_jax.features import compress, decompress
from saf_jax.level import SILENCE, running_level, safe_level, sample_level
from saf_jax.transforms import istft, stft


class Analysis(NamedTuple):
    """What the network is given.

    Attributes:
      spectrum: complex64 [B, T, F], compressed domain, unit level.
      level: float32 [B, 1, 1], or [B, T, 1] for causal configs: what the linear spectrum was divided by; 0 for silence.
    """

    spectrum: jax.Array
    level: jax.Array


def analyse(samples: jax.Array, config: Config, level: jax.Array | None = None) -> Analysis:
    """Samples -> compressed spectrum at unit level.

    Args:
      samples: float32 [B, N].
      config: STFT settings and whether the network is causal.
      level: float32 [B, 1, 1] or [B, T, 1], to be used instead of the signal's own: a clean signal takes its noisy
        version's, a block of a recording the whole recording's.
    """
    spectrum = stft(samples, config.stft)
    if level is None:
        if config.model.causal:
            level = running_level(spectrum, config.stft)[0][..., None]
        else:
            level = sample_level(samples, config.stft)[:, None, None]
    return Analysis(normalise(spectrum, level, config), level)


def normalise(spectrum: jax.Array, level: jax.Array, config: Config) -> jax.Array:
    """Linear spectrum complex64 [B, T, F] -> compressed spectrum of a signal of unit level."""
    return compress(spectrum / safe_level(level), config.stft)


def restore(estimate: jax.Array, level: jax.Array, config: Config) -> jax.Array:
    """Inverse of `normalise`; silence stays silent whatever the estimate is."""
    return decompress(estimate, config.stft) * jnp.where(level > SILENCE, level, 0.0)


def synthesise(estimate: jax.Array, level: jax.Array, config: Config, length: int) -> jax.Array:
    """Compressed estimate complex64 [B, T, F] -> samples float32 [B, length] at the original level; silence stays."""
    return istft(restore(estimate, level, config), config.stft, length)


def is_sounding(spectrum: jax.Array) -> jax.Array:
    """Which frames of a spectrum complex64 [B, T, F] are not digital silence: bool [B, T]."""
    return jnp.any(spectrum != 0, axis=-1)
