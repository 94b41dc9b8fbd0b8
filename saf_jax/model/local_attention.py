"""Dot-product attention of each band over its neighbours in frequency (the paper's sub-band information)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from saf_jax.config import ModelConfig
from saf_jax.model.layers import Norm, Pointwise


class LocalBandAttention(nn.Module):
    """Scaled dot-product attention over `local_window` bands of one frame, in heads, pre-norm, residual.

    References:
      The paper (three neighbouring bands); local spectral attention, arXiv 2302.05693.
    """

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, F, C] -> [B, T, F, C]."""
        width = self.config.width
        y = Norm(self.config, self.axis_name, self.dtype, name="norm")(x, mask, train)
        query = Pointwise(width, dtype=self.dtype, name="query")(y)
        # A bias on the keys shifts all scores of a query alike: the softmax cancels it, so its gradient is zero.
        key = Pointwise(width, use_bias=False, dtype=self.dtype, name="key")(y)
        value = Pointwise(width, dtype=self.dtype, name="value")(y)
        mixed = local_attention(query, key, value, self.config.heads, self.config.local_window)
        small = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        return x + Pointwise(width, kernel_init=small, dtype=self.dtype, name="out")(mixed)


def local_attention(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, window: int) -> jax.Array:
    """Attention of band f over the bands f - window // 2 ... f + window // 2 of the same frame.

    The keys and values of the neighbours are shifted copies, not gathers. Bands beyond the edges get no weight.

    Args:
      query, key, value: [B, T, F, C].
      heads: divides C.
      window: odd number of bands.

    Returns:
      [B, T, F, C].
    """
    bands, width = query.shape[-2:]
    half = window // 2
    # The sum over each head's channels, and its transpose, as small matrix products: XLA keeps [.., F, C] layouts.
    pool = jnp.repeat(jnp.eye(heads, dtype=query.dtype), width // heads, axis=0)
    scale = (width // heads) ** -0.5
    edge = [(0, 0)] * (query.ndim - 2) + [(half, half), (0, 0)]
    keys, values = jnp.pad(key, edge), jnp.pad(value, edge)
    scores = []
    for shift in range(window):
        neighbour = jnp.arange(bands) + shift - half
        inside = (neighbour >= 0) & (neighbour < bands)
        score = (query * keys[..., shift : shift + bands, :]) @ pool * scale
        scores.append(jnp.where(inside[:, None], score.astype(jnp.float32), -jnp.inf))
    highest = jax.lax.stop_gradient(jnp.stack(scores).max(axis=0))
    weights = [jnp.exp(score - highest) for score in scores]
    total = sum(weights)
    return sum(
        ((weight / total).astype(query.dtype) @ pool.T) * values[..., shift : shift + bands, :]
        for shift, weight in enumerate(weights)
    )
