"""Signals that come piece by piece: what the layers carry from piece to piece, and how late each part's output comes.

Applied with `mutable=["past"]`, the network takes the next frames of a signal and whatever its layers need of the
frames before them from the variable collection "past". Every convolution in time then looks back only: one that looks
ahead in a whole signal comes late instead, and whatever meets its output is delayed to match. The estimate is that of
the whole signal, `network_delay` frames late. Transformer layers cannot: they are late by the whole signal.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from saf_jax.config import ModelConfig
from saf_jax.errors import UserError


class Delay(nn.Module):
    """What came `frames` frames earlier, zeros before the first, when the signal comes piece by piece; otherwise x."""

    frames: float

    @nn.compact
    def __call__(self, x: jax.Array | None) -> jax.Array | None:
        """[B, T, ...] -> [B, T, ...]; None stays None."""
        if x is None or not self.frames or not works_in_pieces(self):
            return x
        return jnp.concatenate([exchange_past(self, x, self.frames), x], axis=1)[:, : x.shape[1]]


def works_in_pieces(module: nn.Module) -> bool:
    """Whether the signal comes piece by piece."""
    return module.is_mutable_collection("past") and not module.is_initializing()


def exchange_past(module: nn.Module, x: jax.Array, span: int) -> jax.Array:
    """The frames before x, zeros at the start of a signal; the last ones of both take their place for the next call.

    Args:
      module: whose variable keeps them; one call for each module.
      x: [B, T, ...].
      span: number of frames.

    Returns:
      [B, span, ...].
    """
    batch, frames, *rest = x.shape
    stored = module.variable("past", "frames", jnp.zeros, (batch, span, *rest), x.dtype)
    past = stored.value
    stored.value = jnp.concatenate([past, x], axis=1)[:, frames:]
    return past


def check_pieces(config: ModelConfig) -> None:
    """Raises `UserError` if the network cannot take a signal piece by piece."""
    if config.layer_kind == "transformer":
        raise UserError(
            "model.layer_kind=transformer attends to the whole signal and cannot take it in pieces: give it the whole, "
            "or take a network with model.layer_kind=saf"
        )


def dense_delay(config: ModelConfig) -> int:
    """Frames by which a dense block's output is late, and with it that of an encoder or decoder."""
    return 0 if config.causal else sum(config.dense_dilations)


def attention_delay(config: ModelConfig) -> int:
    """Frames by which the convolutional attention's output is late."""
    return 0 if config.causal else config.attention_kernel // 2


def layer_delay(config: ModelConfig) -> float:
    """Frames by which a layer's output is late; infinitely many for a transformer layer."""
    if config.layer_kind == "transformer":
        return math.inf
    tcn = 0 if config.causal else sum(config.tcn_dilations) * (config.tcn_kernel - 1) // 2
    return attention_delay(config) + tcn


def network_delay(config: ModelConfig) -> float:
    """Frames by which the whole network's estimate is late; infinitely many for one with transformer layers."""
    if config.layer_kind == "transformer":
        return math.inf
    return 2 * dense_delay(config) + config.layers * layer_delay(config)
