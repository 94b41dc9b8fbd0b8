"""Training losses: pure functions of estimate and target.

Each returns a sum and a count, not a mean: the loss of a batch that is spread over devices and padded is the sum of
all sums divided by the sum of all counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from saf_jax.config import LossConfig


class Term(NamedTuple):
    """Sum over the valid elements of a batch, and their number; the loss is `total / count`."""

    total: jax.Array
    count: jax.Array


def complex_error(estimate: jax.Array, target: jax.Array, frames: jax.Array) -> Term:
    """Squared error of the real plus that of the imaginary part (DB-AIAT, arXiv 2110.06467, equation 9).

    Args:
      estimate, target: complex64 [B, T, F], compressed domain.
      frames: int32 [B], valid frames of each signal.
    """
    error = estimate - target
    return _masked(jnp.real(error) ** 2 + jnp.imag(error) ** 2, frames)


def magnitude_error(estimate: jax.Array, target: jax.Array, frames: jax.Array) -> Term:
    """Squared error of the magnitudes (DB-AIAT, equation 9).

    Args:
      estimate, target: complex64 [B, T, F], compressed domain.
      frames: int32 [B], valid frames of each signal.
    """
    return _masked((_safe_magnitude(estimate) - _safe_magnitude(target)) ** 2, frames)


def loss_terms(estimate: jax.Array, target: jax.Array, frames: jax.Array, config: LossConfig) -> dict[str, Term]:
    """All terms whose weight is not 0, by their names in `LossConfig`."""
    terms = {"complex": complex_error, "magnitude": magnitude_error}
    return {name: term(estimate, target, frames) for name, term in terms.items() if getattr(config, name)}


def weighted_sum(terms: dict[str, Term], config: LossConfig) -> jax.Array:
    """Loss to minimise, from terms that are summed over everything that counts."""
    return sum(getattr(config, name) * term.total / jnp.maximum(term.count, 1) for name, term in terms.items())


def _masked(values: jax.Array, frames: jax.Array) -> Term:
    mask = jnp.arange(values.shape[1]) < frames[:, None]
    count = jnp.sum(frames).astype(values.dtype) * values.shape[2]
    return Term(jnp.sum(values * mask[:, :, None]), count)


def _safe_magnitude(spectrum: jax.Array) -> jax.Array:
    """Magnitude with a finite gradient at 0."""
    return jnp.sqrt(jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2 + 1e-9)
