"""Temporal convolution blocks: they restore the information along time."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from saf_jax.config import ModelConfig
from saf_jax.model.delay import Delay
from saf_jax.model.layers import DepthwiseConv, Norm, Pointwise, PReLU


class TCN(nn.Module):
    """Residual blocks, one for each dilation: norm, 1x1, dilated depth-wise convolution in time, PReLU, 1x1.

    References:
      The temporal-frequency convolution module of MTFAA (Zhang et al. 2022), reduced to the time axis.
    """

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, F, C] -> [B, T, F, C]."""
        small = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        for i, dilation in enumerate(self.config.tcn_dilations):
            y = Norm(self.config, self.axis_name, self.dtype, name=f"norm_{i}")(x, mask, train)
            y = Pointwise(self.config.width, dtype=self.dtype, name=f"in_{i}")(y)
            taps = self.config.tcn_kernel
            y = DepthwiseConv(taps, 1, dilation, self.config.causal, self.dtype, name=f"time_{i}")(y, mask)
            y = PReLU(name=f"prelu_{i}")(y)
            late = 0 if self.config.causal else dilation * (taps - 1) // 2
            x, mask = Delay(late)(x), Delay(late)(mask)
            x = x + Pointwise(self.config.width, kernel_init=small, dtype=self.dtype, name=f"out_{i}")(y)
        return x
