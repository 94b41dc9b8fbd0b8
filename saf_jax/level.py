"""The level that signals are divided by before the network and multiplied by after it."""

import jax
import jax.numpy as jnp
import numpy as np

from saf_jax.config import STFTConfig

# Frames quieter than the loudest by more than this do not count, so that pauses in a long recording do not shift it.
GATE_DB = 40.0
RUNNING_SECONDS = 1.0
# -120 dB of full scale: what lies below is taken for digital silence.
SILENCE = 1e-6
# Beyond any scale that samples come in, and small enough for powers in float32.
LOUDEST = 1e12


def frame_energies(samples: jax.Array, config: STFTConfig) -> jax.Array:
    """Mean square of each hop of samples, the last one filled with zeros: [..., N] -> [..., ceil(N / hop_samples)]."""
    hop = config.hop_samples
    padding = -samples.shape[-1] % hop
    padded = jnp.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(0, padding)])
    return jnp.mean(padded.reshape(*samples.shape[:-1], -1, hop) ** 2, axis=-1)


def gated_level(energies: jax.Array) -> jax.Array:
    """RMS over the frames within `GATE_DB` of the loudest: [..., frames] -> [...]; 0 for silence.

    Appended silence does not change it. Numpy arrays stay numpy arrays: jnp would compile anew for every length.
    """
    loud = (energies >= energies.max(axis=-1, keepdims=True) * 10 ** (-GATE_DB / 10)) & (energies > 0)
    return _root((energies * loud).sum(axis=-1) / loud.sum(axis=-1).clip(1))


def running_level(
    spectrum: jax.Array, config: STFTConfig, state: jax.Array | None = None, begun: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Causal level: a leaky average of frame powers with a time constant of `RUNNING_SECONDS`.

    The average is divided by the weight that it has gathered, so that it is unbiased from the first frame on.

    Args:
      spectrum: complex64 [..., T, F], linear domain; all leading axes are independent signals.
      config: STFT settings.
      state: float32 [..., 2], the leaky sums of power and of weight before the first frame; None starts a signal.
      begun: bool [..., T], false for frames before the signal's first, whose level is 0; None: all are the signal's.

    Returns:
      Level of each frame, float32 [..., T], and the state after the last frame.
    """
    keep = jnp.exp(-config.hop_samples / (RUNNING_SECONDS * config.sample_rate_hz))
    # Parseval for a one-sided spectrum; 3/8 is the mean square of the Hann window.
    weights = np.full(config.bins, 2.0, np.float32)
    weights[[0, -1]] = 1.0
    power = (jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2) @ weights / (config.window_samples**2 * 3 / 8)
    if state is None:
        state = jnp.zeros((*power.shape[:-1], 2), power.dtype)
    weight = jnp.ones_like(power) if begun is None else begun.astype(power.dtype)

    def step(state: jax.Array, frame: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = keep * state + (1 - keep) * frame
        return new, _root(new[..., 0] / jnp.where(new[..., 1] > 0, new[..., 1], 1.0))

    frames = jnp.stack([weight * power, weight], axis=-1)
    state, levels = jax.lax.scan(step, state, jnp.moveaxis(frames, -2, 0))
    return jnp.moveaxis(levels, 0, -1), state


def _root(power: jax.Array) -> jax.Array:
    """Square root whose gradient at 0 is 0, not infinite: what is silent gets no gradient, instead of NaN."""
    if not isinstance(power, jax.Array):
        return power**0.5
    return jnp.where(power > 0, jnp.sqrt(jnp.where(power > 0, power, 1.0)), 0.0)


def sample_level(samples: jax.Array, config: STFTConfig) -> jax.Array:
    """Gated level of whole signals: [..., N] -> [...]; 0 for silence."""
    return gated_level(frame_energies(samples, config))


def safe_level(level: jax.Array) -> jax.Array:
    """The level, or 1 where it is that of silence: what a signal can be divided by."""
    return jnp.where(level > SILENCE, level, 1.0)
