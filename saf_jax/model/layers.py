"""The few building blocks that all modules share. Arrays are [B, T, F, C] throughout."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from saf_jax.config import ModelConfig
from saf_jax.model.delay import Delay, exchange_past, works_in_pieces
from saf_jax.model.depthwise import depthwise_conv2d


def apply_mask(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Zeroes what lies beyond the end of each signal; called before every operation that mixes time.

    Args:
      x: [B, T, F, C].
      mask: [B, T, 1, 1], 1 within the signal and 0 beyond; None for signals that fill T.
    """
    return x if mask is None else x * mask.astype(x.dtype)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x + bias`, float32 inside: [B, T, F, C], [C] or [F, C] -> [B, T, F, C] of x's type.

    The bias's gradient is a sum over B, T and F. In bfloat16, which has 8 bits, it would stop to grow after some
    hundred terms of one sign: of a batch of 32 crops of 2 s, a thirtieth came out on a CPU (a seventh for a PReLU).
    """
    return (x.astype(jnp.float32) + bias).astype(x.dtype)


@jax.custom_vjp
def narrow_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` for one or two output channels: [B, T, F, C], [C, O] -> [B, T, F, O].

    As a matrix product, XLA on CPU adds the kernel's gradient up over B * T * F one after another: its rounding error
    reached 6e-5 of the largest value at 16 crops of 2 s, here 3e-7, in half the time.
    """
    return x @ kernel


def _narrow_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return x @ kernel, (x, kernel)


def _narrow_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    frames = jnp.einsum("...fc,...fo->...co", x, gradient, preferred_element_type=jnp.float32)
    return gradient @ kernel.T, frames.sum(range(x.ndim - 2)).astype(kernel.dtype)


narrow_product.defvjp(_narrow_forward, _narrow_backward)


@jax.custom_vjp
def flat_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, [B, T, F, C], [C, O] -> [B, T, F, O], with the kernel's gradient as a product of two matrices.

    Summed over B, T and F as three axes, XLA on CPU first transposes the output's gradient, and computes whatever that
    gradient comes from in the transposed order, element by element.
    """
    return x @ kernel


def _flat_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return x @ kernel, (x, kernel)


def _flat_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    flat = [array.reshape(-1, array.shape[-1]) for array in (x, gradient)]
    return gradient @ kernel.T, flat[0].T @ flat[1]


flat_product.defvjp(_flat_forward, _flat_backward)


class Pointwise(nn.Module):
    """1 x 1 convolution of one array or of several, as if they were concatenated along C.

    A sum of matrix products instead of a product of a concatenation: the concatenated array is never written.
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        sizes = [x.shape[-1] for x in inputs]
        kernel = self.param("kernel", self.kernel_init, (sum(sizes), self.features))
        product = narrow_product if self.features <= 2 else flat_product
        start, out = 0, None
        for x, size in zip(inputs, sizes):
            part = product(x.astype(self.dtype), kernel[start : start + size].astype(self.dtype))
            out = part if out is None else out + part
            start += size
        if self.use_bias:
            out = add_bias(out, self.param("bias", nn.initializers.zeros_init(), (self.features,)))
        return out


def _channel_sums(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sums over C: [B, T, F, C], [C] -> [B, T, F, 1].

    XLA on CPU takes much longer for a sum along the last axis than for the same as a product with a vector
    (benchmarks/RESULTS.md: layer norm). Elsewhere a sum becomes part of the operations around it, and is not left to a
    unit of low precision.
    """

    def product(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST)

    sums = jax.lax.platform_dependent(x, weights, cpu=product, default=lambda x, weights: jnp.sum(x * weights, -1))
    return sums[..., None]


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalisation over the channels of each position (Ba et al., arXiv 1607.06450).

    Its gradient is written out: left to itself XLA on CPU spends a sixth of a step of the paper's network on sums over
    channels.

    Args:
      x: float32 [B, T, F, C].
      scale, bias: float32 [C], of what has mean 0 and variance 1.

    Returns:
      float32 [B, T, F, C].
    """
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    each = jnp.full(x.shape[-1:], 1 / x.shape[-1], x.dtype)
    mean = _channel_sums(x, each)
    inverse = jax.lax.rsqrt(_channel_sums((x - mean) ** 2, each) + 1e-5)
    return (x - mean) * inverse * scale + bias, (x, mean, inverse, scale)


def _layer_norm_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale = saved
    normal = (x - mean) * inverse
    # A change of x along the constant or along `normal` changes nothing: both are taken out.
    weights = scale / x.shape[-1]
    along_constant = _channel_sums(gradient, weights)
    along_normal = (_channel_sums(gradient * x, weights) - mean * along_constant) * inverse
    return (
        inverse * (gradient * scale - along_constant - normal * along_normal),
        jnp.sum(gradient * normal, (0, 1, 2)),
        jnp.sum(gradient, (0, 1, 2)),
    )


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class DepthwiseConv(nn.Module):
    """Depth-wise convolution over time and frequency with zeros beyond the edges; see `depthwise_conv2d`.

    The only layer that mixes time. Of a signal that comes piece by piece it keeps the last frames and all its taps look
    back, so that the output of one that is not causal is late by half the frames that it spans.

    Attributes:
      time_taps, frequency_taps: odd sizes of the kernel.
      time_dilation: frames between the taps in time.
      causal: all taps in time look back.
    """

    time_taps: int
    frequency_taps: int
    time_dilation: int = 1
    causal: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        channels = x.shape[-1]
        taps = self.time_taps * self.frequency_taps
        kernel = self.param(
            "kernel",
            nn.initializers.normal(taps**-0.5),
            (self.time_taps, self.frequency_taps, channels),
        )
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        x = apply_mask(x.astype(self.dtype), mask)
        past = exchange_past(self, x, (self.time_taps - 1) * self.time_dilation) if works_in_pieces(self) else None
        y = depthwise_conv2d(
            x,
            kernel.astype(self.dtype),
            time_dilation=self.time_dilation,
            causal=self.causal or past is not None,
            past=past,
        )
        return add_bias(y, bias)


class PReLU(nn.Module):
    """max(x, 0) + a min(x, 0) with a learnt slope a for each channel (He et al., arXiv 1502.01852)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        # In float32, for the slope's gradient: see `add_bias`.
        return jnp.where(x >= 0, x, (slope * x.astype(jnp.float32)).astype(x.dtype))


class Norm(nn.Module):
    """Normalisation of the kind that the config names, with a learnt scale and bias for each channel.

    "layer", "group" and "instance" take their statistics within one frame, so that neither padding nor later frames can
    change them; "batch" uses the valid frames of the whole batch, over all devices, in training, and stored averages
    at inference.
    """

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        x = x.astype(jnp.float32)
        kind = self.config.norm
        if kind == "batch":
            mean, variance = self._batch_statistics(x, mask, train)
            # As one product and one sum with x: centred and scaled arrays, which gradients would want again, are never
            # written. XLA on CPU writes whatever is wanted twice.
            slope = scale * jax.lax.rsqrt(variance + 1e-5)
            return (x * slope + (bias - mean * slope)).astype(self.dtype)
        if kind == "layer":
            return layer_norm(x, scale, bias).astype(self.dtype)
        if kind == "group":
            grouped = x.reshape(*x.shape[:-1], self.config.norm_groups, -1)
            normal = _standardise(grouped, (-3, -1)).reshape(x.shape)
        else:
            normal = _standardise(x, (-2,))
        return (normal * scale + bias).astype(self.dtype)

    def _batch_statistics(self, x: jax.Array, mask: jax.Array | None, train: bool) -> tuple[jax.Array, jax.Array]:
        channels = x.shape[-1]
        stored_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        stored_variance = self.variable("batch_stats", "variance", jnp.ones, (channels,))
        if not train:
            return stored_mean.value, stored_variance.value
        weight = jnp.ones((*x.shape[:2], 1, 1)) if mask is None else mask.astype(jnp.float32)
        sums = (jnp.sum(x * weight, (0, 1, 2)), jnp.sum(x**2 * weight, (0, 1, 2)), jnp.sum(weight) * x.shape[2])
        if self.axis_name is not None and not self.is_initializing():
            sums = jax.lax.psum(sums, self.axis_name)
        mean = sums[0] / sums[2]
        variance = jnp.maximum(sums[1] / sums[2] - mean**2, 0.0)
        if not self.is_initializing():
            stored_mean.value = 0.99 * stored_mean.value + 0.01 * jax.lax.stop_gradient(mean)
            stored_variance.value = 0.99 * stored_variance.value + 0.01 * jax.lax.stop_gradient(variance)
        return mean, variance


def _standardise(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    mean = jnp.mean(x, axes, keepdims=True)
    centred = x - mean
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axes, keepdims=True) + 1e-5)


class DenseBlock(nn.Module):
    """Densely connected depth-wise separable convolutions, dilated in time.

    Each convolution sees the block's input and all outputs before it: 1x1 to C, norm, PReLU, 3x3 depth-wise. The 1x1
    comes first, so that the depth-wise part works on C channels instead of on the growing concatenation; the norm comes
    before the depth-wise part, because its statistics then are those of a matrix product, which is in memory anyway
    (XLA:CPU would compute the depth-wise sum once for each statistic: `benchmarks/training.py --parts norms`).

    References:
      DB-AIAT, arXiv 2110.06467, figure 2 (dilated dense block), made separable.
    """

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, F, C] -> [B, T, F, C]."""
        features = [x]
        for i, dilation in enumerate(self.config.dense_dilations):
            y = Pointwise(self.config.width, use_bias=False, dtype=self.dtype, name=f"pointwise_{i}")(*features)
            y = Norm(self.config, self.axis_name, self.dtype, name=f"norm_{i}")(y, mask, train)
            y = PReLU(name=f"prelu_{i}")(y)
            y = DepthwiseConv(3, 3, dilation, self.config.causal, self.dtype, name=f"depthwise_{i}")(y, mask)
            if i + 1 < len(self.config.dense_dilations):
                late = 0 if self.config.causal else dilation
                mask = Delay(late)(mask)
                features = [Delay(late)(feature) for feature in features]
            features.append(y)
        return features[-1]
