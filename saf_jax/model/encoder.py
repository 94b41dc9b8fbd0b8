"""Spectrum Encoder (the paper's figure 1): two input spectra -> features at a lower resolution in frequency."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from saf_jax.config import ModelConfig
from saf_jax.model.delay import Delay, dense_delay
from saf_jax.model.layers import DenseBlock, Norm, Pointwise, PReLU


class SpectrumEncoder(nn.Module):
    """1x1 to C, dense block, then `frequency_stride` neighbouring bands become one by a learnt linear map.

    With `ModelConfig.fold_first` the bands become one before anything else: all of it works at the lower resolution.
    """

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """Encodes.

        Args:
          x: [B, T, F, channels], such as magnitude and phase stacked.
          mask: [B, T, 1, 1] or None, see `apply_mask`.
          train: batch norm takes the batch's statistics.

        Returns:
          [B, T, ceil(F / frequency_stride), C].
        """
        norm = dict(config=self.config, axis_name=self.axis_name, dtype=self.dtype)
        if self.config.fold_first:
            x = fold_bands(x, self.config.frequency_stride)
        x = Pointwise(self.config.width, dtype=self.dtype, name="expand")(x)
        x = PReLU(name="prelu_in")(Norm(**norm, name="norm_in")(x, mask, train))
        x = DenseBlock(**norm, name="dense")(x, mask, train)
        mask = Delay(dense_delay(self.config))(mask)
        if not self.config.fold_first:
            x = fold_bands(x, self.config.frequency_stride)
        x = Pointwise(self.config.width, dtype=self.dtype, name="downsample")(x)
        return PReLU(name="prelu_out")(Norm(**norm, name="norm_out")(x, mask, train))


def fold_bands(x: jax.Array, stride: int) -> jax.Array:
    """Puts `stride` neighbouring bands side by side in C: [B, T, F, C] -> [B, T, ceil(F / stride), stride * C].

    A convolution whose kernel equals its stride is this and a 1x1; zeros stand for the bands above the last.
    """
    batch, frames, bands, channels = x.shape
    x = jnp.pad(x, [(0, 0), (0, 0), (0, -bands % stride), (0, 0)])
    return x.reshape(batch, frames, -(-bands // stride), stride * channels)


def unfold_bands(x: jax.Array, stride: int, bands: int) -> jax.Array:
    """Inverse of `fold_bands` (sub-pixel upsampling): [B, T, F', stride * C] -> [B, T, bands, C]."""
    batch, frames, folded, channels = x.shape
    return x.reshape(batch, frames, folded * stride, channels // stride)[:, :, :bands]
