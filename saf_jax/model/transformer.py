"""The baseline that the paper replaces: self-attention over frequency and over time, as in a vanilla transformer."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from saf_jax.config import ModelConfig
from saf_jax.model.layers import Norm, Pointwise


class TransformerLayer(nn.Module):
    """Self-attention over the bands of a frame, over the frames of a band, then feed-forward: pre-norm, residual each.

    References:
      Vaswani et al., arXiv 1706.03762, section 3; the norm comes first, as in Xiong et al., arXiv 2002.04745. Frequency
      and time by turns: TSTNN, arXiv 2103.09963.
    """

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, F, C] -> [B, T, F, C]."""
        parts = dict(config=self.config, axis_name=self.axis_name, dtype=self.dtype)
        x = SelfAttention(**parts, over="frequency", name="frequency")(x, mask, train)
        x = SelfAttention(**parts, over="time", name="time")(x, mask, train)
        return FeedForward(**parts, name="feedforward")(x, mask, train)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention along one axis, pre-norm, residual.

    Attributes:
      over: "frequency" (all bands of a frame) or "time" (all frames of a band).
    """

    config: ModelConfig
    over: Literal["frequency", "time"]
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, F, C] -> [B, T, F, C]; frames beyond the mask are no keys."""
        width = self.config.width
        y = Norm(self.config, self.axis_name, self.dtype, name="norm")(x, mask, train)
        keys = None
        if self.over == "time":
            y = y.swapaxes(1, 2)
            keys = None if mask is None else mask[:, None, :, 0, 0] != 0
        query = Pointwise(width, dtype=self.dtype, name="query")(y)
        # A bias on the keys shifts all scores of a query alike: the softmax cancels it, so its gradient is zero.
        key = Pointwise(width, use_bias=False, dtype=self.dtype, name="key")(y)
        value = Pointwise(width, dtype=self.dtype, name="value")(y)
        small = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        mixed = attention(query, key, value, self.config.heads, keys)
        out = Pointwise(width, kernel_init=small, dtype=self.dtype, name="out")(mixed)
        return x + (out.swapaxes(1, 2) if self.over == "time" else out)


class FeedForward(nn.Module):
    """1x1 to `feedforward_factor * C`, GELU, 1x1 back: pre-norm, residual."""

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, F, C] -> [B, T, F, C]."""
        width = self.config.width
        y = Norm(self.config, self.axis_name, self.dtype, name="norm")(x, mask, train)
        y = Pointwise(width * self.config.feedforward_factor, dtype=self.dtype, name="in")(y)
        small = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        return x + Pointwise(width, kernel_init=small, dtype=self.dtype, name="out")(nn.gelu(y, approximate=True))


def attention(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, keys: jax.Array | None) -> jax.Array:
    """Every position's softmax over all positions, with all N x N scores in memory at once.

    Args:
      query, key, value: [B, M, N, C]; each of the M rows is a sequence of its own.
      heads: divides C.
      keys: bool [B, 1, N], which positions may be attended to; None: all. Where there is none, the result is 0.

    Returns:
      [B, M, N, C]. Scores, softmax and sums are float32 whatever the arrays are.
    """
    size = query.shape[-1] // heads
    # The scale goes to the queries, which are fewer than the scores. Heads come before positions: what the products
    # then take and give lies in memory as it is, and no copy of the scores is made.
    query, key, value = (x.reshape(*x.shape[:-1], heads, size).swapaxes(2, 3) for x in (query * size**-0.5, key, value))
    scores = jnp.matmul(query, key.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    if keys is not None:
        scores = jnp.where(keys[:, :, None, None, :], scores, -jnp.inf)
    # Not below the smallest number: where no key is left, -inf less -inf would be NaN.
    highest = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(highest))
    total = weights.sum(axis=-1, keepdims=True)
    # Divided by the sum only now: N x C numbers instead of N x N.
    mixed = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    mixed = (mixed / jnp.where(total > 0, total, 1.0)).astype(value.dtype).swapaxes(2, 3)
    return mixed.reshape(*mixed.shape[:3], heads * size)


def add_positions(x: jax.Array) -> jax.Array:
    """Adds where in the signal and in the spectrum each feature is: [B, T, F, C] -> [B, T, F, C].

    The first half of the channels tells the frame, counted from the signal's first, the second half the band.

    References:
      Vaswani et al., arXiv 1706.03762, section 3.5 (fixed sines and cosines).
    """
    _, frames, bands, channels = x.shape
    half = channels // 2
    shape = (1, frames, bands, 1)
    # By broadcasts alone: exporters whose number of frames is open know no indexing here.
    time, frequency = (jax.lax.broadcasted_iota(jnp.float32, shape, axis) for axis in (1, 2))
    both = [sinusoids(time, half), sinusoids(frequency, channels - half)]
    return x + jnp.concatenate(both, axis=-1).astype(x.dtype)


def sinusoids(positions: jax.Array, channels: int) -> jax.Array:
    """Sines, then cosines, at wavelengths from 2 pi to nearly 10000 * 2 pi: float32 [..., 1] -> [..., C]."""
    pairs = -(-channels // 2)
    angles = positions * (10000.0 ** (-np.arange(pairs) / max(pairs, 1))).astype(np.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :channels]


def attention_bytes(config: ModelConfig, bins: int, frames: int) -> int:
    """Memory that attention over time takes at inference for one signal, which grows with the square of its length.

    The scores of all bands and heads and their exponentials, float32 each, in one layer at a time: 2.02 times the
    scores, as compiled for a CPU at 10 s and at 30 s.

    Args:
      config: a network with transformer layers.
      bins: F of the network's input.
      frames: T.
    """
    return 2 * 4 * -(-bins // config.frequency_stride) * config.heads * frames**2
