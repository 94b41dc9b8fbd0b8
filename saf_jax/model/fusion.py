"""Spectrum Attention Fusion: the module that replaces several self-attention layers, and the layer around it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from saf_jax.config import ModelConfig
from saf_jax.model.delay import Delay, attention_delay
from saf_jax.model.layers import DepthwiseConv, Norm, Pointwise
from saf_jax.model.local_attention import LocalBandAttention
from saf_jax.model.tcn import TCN


class ConvolutionalAttention(nn.Module):
    """The SAF module: a large-kernel convolution weighs the values by a Hadamard product.

    `A = DWConv(GELU(W1 x))`, `V = W2 x`, `out = x + W3 (A * V)` with x normalised first. Each channel of A weighs the
    same channel of V, whichever head it belongs to: for a Hadamard product the heads are a mere partition of C.

    References:
      The paper, SAF module (11 x 11, layer norm); Conv2Former, arXiv 2211.11943, equations 5 to 7.
    """

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, F, C] -> [B, T, F, C]."""
        width, side = self.config.width, self.config.attention_kernel
        y = Norm(self.config, self.axis_name, self.dtype, name="norm")(x, mask, train)
        attention = nn.gelu(Pointwise(width, dtype=self.dtype, name="attention")(y), approximate=True)
        attention = DepthwiseConv(side, side, 1, self.config.causal, self.dtype, name="large_kernel")(attention, mask)
        delay = attention_delay(self.config)
        value = Delay(delay)(Pointwise(width, dtype=self.dtype, name="value")(y))
        small = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        out = Pointwise(width, kernel_init=small, dtype=self.dtype, name="out")(attention * value)
        return Delay(delay)(x) + out


class SAFLayer(nn.Module):
    """Convolutional attention, local band attention, TCN: each residual, each left out where the config says so."""

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, F, C] -> [B, T, F, C]."""
        parts = dict(config=self.config, axis_name=self.axis_name, dtype=self.dtype)
        if self.config.attention_kernel:
            x = ConvolutionalAttention(**parts, name="attention")(x, mask, train)
            mask = Delay(attention_delay(self.config))(mask)
        if self.config.local_window:
            x = LocalBandAttention(**parts, name="local")(x, mask, train)
        return TCN(**parts, name="tcn")(x, mask, train)


class StreamFusion(nn.Module):
    """Makes one array of the encoders' outputs, in the way that `ModelConfig.fusion` names."""

    config: ModelConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, streams: list[jax.Array]) -> jax.Array:
        """One or two arrays [B, T, F, C] (magnitude and phase first) -> [B, T, F, C]."""
        if len(streams) == 1:
            return streams[0]
        width = self.config.width
        if self.config.fusion == "add":
            return streams[0] + streams[1]
        if self.config.fusion == "gate":
            value = Pointwise(width, dtype=self.dtype, name="value")(streams[0])
            gate = Pointwise(width, dtype=self.dtype, name="gate")(streams[1])
            return streams[0] + Pointwise(width, dtype=self.dtype, name="out")(gate * value)
        return Pointwise(width, dtype=self.dtype, name="join")(*streams)
