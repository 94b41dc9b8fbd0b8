"""Depth-wise convolution over time and frequency: several implementations of one layout.

Every implementation computes, for each channel on its own (cross-correlation, as in `jax.lax` and Flax),

    y[b, t, f, c] = sum_ij x[b, t + i * dilation - before, f + j - kw // 2, c] * kernel[i, j, c]

with zeros beyond the edges; `before` is the number of past frames that the kernel reaches.

XLA's CPU backend runs `conv_general_dilated` with one feature group per channel 10 to 50 times slower than the
arithmetic needs, and its gradient with respect to the kernel slower still. So on CPU the convolution is a sum of
shifted products and the kernel's gradient a product of spectra; GPU and TPU take their vendor's convolution.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

IMPLEMENTATIONS = ("lax", "shift", "fft")


def depthwise_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    time_dilation: int = 1,
    causal: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Convolve every channel with its own kernel over time and frequency ('same' zero padding).

    Args:
      x: features, `[B, T, F, C]`.
      kernel: one kernel per channel, `[kh, kw, C]`: `kh` taps in time, `kw` in frequency, both odd.
      time_dilation: frames between neighbouring taps in time.
      causal: whether a frame sees past frames only (all padding in time on the left) instead of as many on both sides.
      implementation: "lax", "shift" or "fft"; None takes what is fastest on the platform that the program is lowered
        for. All of them may be differentiated in reverse mode any number of times; forward mode (`jax.jvp`,
        `jax.jacfwd`, `jax.hessian`) works with "lax" only, since the others carry their own backward pass.

    Returns:
      `[B, T, F, C]` with the data type of `x`; sums are in float32 at least.

    Raises:
      ValueError: if shapes do not fit, a kernel side is even, or the implementation is unknown.
    """
    if x.ndim != 4 or kernel.ndim != 3 or kernel.shape[2] != x.shape[3]:
        raise ValueError(f"x is [B, T, F, C] and kernel [kh, kw, C], not {x.shape} and {kernel.shape}")
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"both sides of a depth-wise kernel are odd, not {kernel.shape[0]} x {kernel.shape[1]}")
    if time_dilation < 1:
        raise ValueError(f"time_dilation is at least 1, not {time_dilation}")
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is one of {', '.join(IMPLEMENTATIONS)} or None, not {implementation!r}")
    span = (kernel.shape[0] - 1) * time_dilation
    before = span if causal else span // 2
    if implementation == "lax":
        return _correlate_lax(x, kernel, time_dilation, before)
    return _correlate(x, kernel, time_dilation, before, implementation)


# The convolution and the gradient with respect to its kernel are each bilinear, and each one's derivatives are the two
# operations again. So two custom rules close under differentiation, and gradients of gradients stay fast as well.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _correlate(x, kernel, dilation, before, implementation):
    if implementation is not None:
        return _FORWARD[implementation](x, kernel, dilation, before)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_correlate_shift, dilation=dilation, before=before),
        default=functools.partial(_correlate_lax, dilation=dilation, before=before),
    )


def _correlate_fwd(x, kernel, dilation, before, implementation):
    return _correlate(x, kernel, dilation, before, implementation), (x, kernel)


def _correlate_bwd(dilation, before, implementation, residuals, gradient):
    x, kernel = residuals
    after = (kernel.shape[0] - 1) * dilation - before
    x_gradient = _correlate(gradient, kernel[::-1, ::-1], dilation, after, implementation)
    kernel_gradient = _kernel_gradient(x, gradient, kernel.shape[:2], dilation, before, implementation)
    return x_gradient, kernel_gradient.astype(kernel.dtype)


_correlate.defvjp(_correlate_fwd, _correlate_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _kernel_gradient(x, gradient, kernel_size, dilation, before, implementation):
    arguments = {"kernel_size": kernel_size, "dilation": dilation, "before": before}
    if implementation is not None:
        return _KERNEL_GRADIENT[implementation](x, gradient, **arguments)
    return lax.platform_dependent(
        x,
        gradient,
        cpu=functools.partial(_kernel_gradient_fft, **arguments),
        default=functools.partial(_kernel_gradient_lax, **arguments),
    )


def _kernel_gradient_fwd(x, gradient, kernel_size, dilation, before, implementation):
    return _kernel_gradient(x, gradient, kernel_size, dilation, before, implementation), (x, gradient)


def _kernel_gradient_bwd(kernel_size, dilation, before, implementation, residuals, cotangent):
    x, gradient = residuals
    after = (kernel_size[0] - 1) * dilation - before
    return (
        _correlate(gradient, cotangent[::-1, ::-1], dilation, after, implementation).astype(x.dtype),
        _correlate(x, cotangent, dilation, before, implementation).astype(gradient.dtype),
    )


_kernel_gradient.defvjp(_kernel_gradient_fwd, _kernel_gradient_bwd)


def _padding(kernel_size, dilation, before):
    """Zeros (before, after) in time and in frequency."""
    return (before, (kernel_size[0] - 1) * dilation - before), (kernel_size[1] // 2, kernel_size[1] // 2)


def _accumulator(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _padded(x, kernel_size, dilation, before):
    time, frequency = _padding(kernel_size, dilation, before)
    return jnp.pad(x, ((0, 0), time, frequency, (0, 0))).astype(_accumulator(x))


# lax: the reference, and what GPU and TPU take.


def _correlate_lax(x, kernel, dilation, before):
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :].astype(x.dtype),
        window_strides=(1, 1),
        padding=_padding(kernel.shape, dilation, before),
        rhs_dilation=(dilation, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def _kernel_gradient_lax(x, gradient, kernel_size, dilation, before):
    kernel = jnp.zeros((*kernel_size, x.shape[3]), _accumulator(x))
    _, pull_back = jax.vjp(lambda kernel: _correlate_lax(x, kernel, dilation, before), kernel)
    return pull_back(gradient)[0]


# shift: one multiply-add per tap.


def _correlate_shift(x, kernel, dilation, before):
    (kh, kw), (frames, bands) = kernel.shape[:2], x.shape[1:3]
    padded, weights = _padded(x, kernel.shape, dilation, before), kernel.astype(_accumulator(x))
    total = None
    for i in range(kh):
        for j in range(kw):
            tap = padded[:, i * dilation : i * dilation + frames, j : j + bands] * weights[i, j]
            total = tap if total is None else total + tap
        if i < kh - 1:
            # One loop over all taps of an 11 x 11 kernel takes LLVM half a minute; a loop per row takes it a second.
            total = lax.optimization_barrier(total)
    return total.astype(x.dtype)


def _kernel_gradient_shift(x, gradient, kernel_size, dilation, before):
    padded, gradient = _padded(x, kernel_size, dilation, before), gradient.astype(_accumulator(x))

    def tap(index):
        window = lax.dynamic_slice(
            padded, (0, index // kernel_size[1] * dilation, index % kernel_size[1], 0), gradient.shape
        )
        return jnp.sum(window * gradient, axis=(0, 1, 2))

    taps = lax.map(tap, jnp.arange(kernel_size[0] * kernel_size[1]))
    return taps.reshape(*kernel_size, x.shape[3])


# fft: products of spectra over time and frequency, channels first because XLA transforms the last axes.


def _spectrum(x, size):
    return jnp.fft.rfft2(jnp.moveaxis(x.astype(_accumulator(x)), 3, 1), size)


def _fft_size(x, kernel_size, dilation):
    return _smooth(x.shape[1] + (kernel_size[0] - 1) * dilation), _smooth(x.shape[2] + kernel_size[1] - 1)


def _smooth(length):
    """The next length with no prime factor above 5."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def _correlate_fft(x, kernel, dilation, before):
    (kh, kw), (frames, bands) = kernel.shape[:2], x.shape[1:3]
    size = _fft_size(x, kernel.shape, dilation)
    spread = jnp.zeros(((kh - 1) * dilation + 1, kw, x.shape[3]), _accumulator(x)).at[::dilation].set(kernel)
    product = _spectrum(x, size) * jnp.conj(_spectrum(spread[None], size))
    circular = jnp.moveaxis(jnp.fft.irfft2(product, size), 1, 3)
    # Output frame 0 lies `before` frames ahead of the first input frame, which a circle holds at its end.
    circular = jnp.roll(circular, (before, kw // 2), axis=(1, 2))
    return circular[:, :frames, :bands].astype(x.dtype)


def _kernel_gradient_fft(x, gradient, kernel_size, dilation, before):
    size = _fft_size(x, kernel_size, dilation)
    product = jnp.sum(_spectrum(x, size) * jnp.conj(_spectrum(gradient, size)), axis=0)
    circular = jnp.moveaxis(jnp.fft.irfft2(product, size), 0, 2)
    circular = jnp.roll(circular, (before, kernel_size[1] // 2), axis=(0, 1))
    return circular[: (kernel_size[0] - 1) * dilation + 1 : dilation, : kernel_size[1]]


_FORWARD = {"lax": _correlate_lax, "shift": _correlate_shift, "fft": _correlate_fft}
_KERNEL_GRADIENT = {"lax": _kernel_gradient_lax, "shift": _kernel_gradient_shift, "fft": _kernel_gradient_fft}
