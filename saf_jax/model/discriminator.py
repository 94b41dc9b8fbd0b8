"""The network that learns to tell the PESQ of an estimate from two magnitude spectra."""

import flax.linen as nn
import jax
import jax.numpy as jnp

_BLOCKS = 4


class Discriminator(nn.Module):
    """Metric discriminator: strided convolutions, a mean over time and frequency, two dense layers.

    Padding never changes the result: what lies beyond a signal's end is zero before every convolution and has no part
    in statistics and means.

    Attributes:
      width: channels of the first convolution; each of the other three has twice as many as the one before.

    References:
      MetricGAN, arXiv 1905.04874; the layers are those of CMGAN, arXiv 2203.15149, section 2.2, with a mean for the
      maximum, since PESQ is one over the whole signal.
    """

    width: int

    @nn.compact
    def __call__(self, target: jax.Array, estimate: jax.Array, frames: jax.Array) -> jax.Array:
        """Predicts the normalised PESQ of each estimate.

        Args:
          target: magnitudes of the clean signals, float32 [B, T, F], compressed, unit level.
          estimate: magnitudes of what is judged, the same.
          frames: int32 [B], valid frames of each.

        Returns:
          float32 [B] in [0, 1].
        """
        x = jnp.stack([target, estimate], axis=-1) * _mask(frames, target.shape[1])
        for i in range(_BLOCKS):
            # Kernel 3 and padding 1 keep frame t of the output over frame 2 t of the input, however much is appended.
            x = nn.Conv(self.width * 2**i, (3, 3), 2, padding=((1, 1), (1, 1)), use_bias=False, name=f"conv_{i}")(x)
            frames = -(-frames // 2)
            mask = _mask(frames, x.shape[1])
            x = nn.leaky_relu(_InstanceNorm(name=f"norm_{i}")(x, mask), 0.2) * mask
        x = _mean(x, mask)[:, 0, 0]
        x = nn.leaky_relu(nn.Dense(4 * self.width, name="hidden")(x), 0.2)
        return nn.sigmoid(nn.Dense(1, name="score")(x)[:, 0])


class _InstanceNorm(nn.Module):
    """Zero mean and unit variance of each channel over the valid part of a signal, then a learned scale and offset."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x - _mean(x * mask, mask)
        return x * jax.lax.rsqrt(_mean(x**2 * mask, mask) + 1e-5) * scale + bias


def _mask(frames: jax.Array, length: int) -> jax.Array:
    """1 inside, 0 beyond the end: float32 [B, T, 1, 1]."""
    return (jnp.arange(length) < frames[:, None]).astype(jnp.float32)[:, :, None, None]


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the valid frames and all bands of what is 0 beyond: [B, T, F, C] -> [B, 1, 1, C]."""
    count = jnp.maximum(jnp.sum(mask, axis=(1, 2), keepdims=True), 1) * x.shape[2]
    return jnp.sum(x, axis=(1, 2), keepdims=True) / count
