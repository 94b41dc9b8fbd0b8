"""From a complex spectrum to the network's inputs and back: power compression, magnitude, phase, real, imaginary."""

import jax
import jax.numpy as jnp

from saf_jax.config import STFTConfig

# Below this compressed magnitude the phase is that of nothing. It lies far below the rounding of float32 (some 1e-6 of
# unit level before compression): bands without any signal, as in speech brought up from 8 kHz, still have the phase of
# rounding noise.
PHASE_FLOOR = 1e-5
_POWER_EPS = 1e-10


def compress(spectrum: jax.Array, config: STFTConfig) -> jax.Array:
    """Raises magnitudes to the power `config.compression` and keeps phases (DB-AIAT, arXiv 2110.06467, section 2.1).

    Args:
      spectrum: complex64 [..., T, F], linear domain, of a signal near unit level.
      config: holds the exponent.

    Returns:
      complex64 [..., T, F]. Values and gradients are finite at digital silence: a small constant is added to the power
      before the root is taken.
    """
    if config.compression == 1:
        return spectrum
    return spectrum * (_power(spectrum) + _POWER_EPS) ** ((config.compression - 1) / 2)


def decompress(spectrum: jax.Array, config: STFTConfig) -> jax.Array:
    """Inverse of `compress`: complex64 [..., T, F], compressed domain -> linear domain."""
    if config.compression == 1:
        return spectrum
    return spectrum * (_power(spectrum) + 1e-20) ** ((1 / config.compression - 1) / 2)


def magnitude_phase_real_imaginary(spectrum: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The four spectra that the paper's encoders take.

    The imaginary parts of the DC and Nyquist bins are exactly zero in theory and of accidental sign in practice, which
    would throw their phase between pi and -pi: they are set to +0. The phase is 0 where the magnitude is below
    `PHASE_FLOOR`, as in digital silence, so that its gradient is finite.

    Args:
      spectrum: complex64 [..., T, F], compressed domain.

    Returns:
      Magnitude, phase (radians, in [-pi, pi]), real and imaginary part, each float32 [..., T, F].
    """
    real, imaginary = jnp.real(spectrum), jnp.imag(spectrum)
    bins = spectrum.shape[-1]
    inner = (jnp.arange(bins) > 0) & (jnp.arange(bins) < bins - 1)
    imaginary = jnp.where(inner, imaginary, 0.0)
    power = real**2 + imaginary**2
    audible = power > PHASE_FLOOR**2
    # The inner `where`s keep the gradients of sqrt and arctan2 away from 0, where they are infinite.
    magnitude = jnp.where(audible, jnp.sqrt(jnp.where(audible, power, 1.0)), power / PHASE_FLOOR)
    phase = jnp.where(audible, jnp.arctan2(jnp.where(audible, imaginary, 0.0), jnp.where(audible, real, 1.0)), 0.0)
    return magnitude, phase, real, imaginary


def _power(spectrum: jax.Array) -> jax.Array:
    return jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
