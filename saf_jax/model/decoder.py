"""Mask Decoder and Bias Decoder: features -> what refines the noisy spectrum."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from saf_jax.config import ModelConfig
from saf_jax.model.delay import Delay, dense_delay
from saf_jax.model.encoder import unfold_bands
from saf_jax.model.layers import DenseBlock, Norm, Pointwise, PReLU


class SpectrumDecoder(nn.Module):
    """Dense block, sub-pixel upsampling in frequency, norm, PReLU, 1x1.

    With `ModelConfig.fold_first` the upsampling is the last step, and nothing but it works at the full resolution.

    Attributes:
      bands: F of the output.
      channels: 1 for the Mask Decoder, 2 for the Bias Decoder.
    """

    config: ModelConfig
    bands: int
    channels: int
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, F', C] -> float32 [B, T, bands, channels]."""
        width, stride = self.config.width, self.config.frequency_stride
        norm = dict(config=self.config, axis_name=self.axis_name, dtype=self.dtype)
        x = DenseBlock(**norm, name="dense")(x, mask, train)
        mask = Delay(dense_delay(self.config))(mask)
        # Small initial outputs: the mask starts near one half everywhere, the bias near zero.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        if self.config.fold_first:
            x = Pointwise(width, dtype=self.dtype, name="upsample")(x)
            x = PReLU(name="prelu")(Norm(**norm, name="norm")(x, mask, train))
            return unfold_bands(Pointwise(self.channels * stride, kernel_init=small, name="out")(x), stride, self.bands)
        x = Pointwise(width * stride, dtype=self.dtype, name="upsample")(x)
        x = unfold_bands(x, stride, self.bands)
        x = PReLU(name="prelu")(Norm(**norm, name="norm")(x, mask, train))
        return Pointwise(self.channels, kernel_init=small, name="out")(x)
