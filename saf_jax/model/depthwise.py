"""Depth-wise convolution over time and frequency: several implementations of one layout.

Every implementation computes, for each channel on its own (cross-correlation, as in `jax.lax` and Flax),

    y[b, t, f, c] = sum_ij x[b, t + i * dilation - before, f + j - kw // 2, c] * kernel[i, j, c]

with zeros beyond the edges; `before` is the number of past frames that the kernel reaches.

XLA's CPU backend runs `conv_general_dilated` with one feature group per channel 10 to 50 times slower than the
arithmetic needs, and its gradient with respect to the kernel slower still. So on CPU the convolution is a sum of
shifted products and the kernel's gradient a product of spectra. On NVIDIA GPUs the vendor's convolution takes 5 to 11
times as long as shifted products for small kernels and as spectra for large ones, and 7 to 36 times as long in the
kernel's gradient (benchmarks/RESULTS.md). TPU takes its vendor's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

IMPLEMENTATIONS = ("lax", "shift", "fft", "taps")


@functools.partial(jax.jit, static_argnames=("time_dilation", "causal", "implementation"))
def depthwise_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    time_dilation: int = 1,
    causal: bool = False,
    implementation: str | None = None,
    past: jax.Array | None = None,
) -> jax.Array:
    """Convolve every channel with its own kernel over time and frequency ('same' zero padding).

    Args:
      x: features, `[B, T, F, C]`.
      kernel: one kernel per channel, `[kh, kw, C]`: `kh` taps in time, `kw` in frequency, both odd.
      time_dilation: frames between neighbouring taps in time.
      causal: whether a frame sees past frames only (all padding in time on the left) instead of as many on both sides.
      implementation: "lax", "shift", "fft" or "taps"; None takes what is fastest on the platform that the program is
        lowered for. All of them may be differentiated in reverse mode any number of times; forward mode (`jax.jvp`,
        `jax.jacfwd`, `jax.hessian`) works with "lax" only, since the others carry their own backward pass.
      past: `[B, (kh - 1) * time_dilation, F, C]`, the frames before the first, for signals that come in pieces;
        None: zeros. For causal convolutions, as the platform has it.

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
    if past is not None:
        if not causal or implementation is not None or past.shape != (x.shape[0], span, *x.shape[2:]):
            raise ValueError(f"past is [B, {span}, F, C] of a causal convolution, not {past.shape}")
        return _platforms_own(jnp.concatenate([past, x], axis=1), kernel, time_dilation, None)
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
    return _platforms_own(x, kernel, dilation, before)


def _platforms_own(x, kernel, dilation, before):
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_correlate_shift, dilation=dilation, before=before),
        cuda=functools.partial(_correlate_taps, dilation=dilation, before=before),
        default=functools.partial(_correlate_lax, dilation=dilation, before=before),
    )


def _correlate_fwd(x, kernel, dilation, before, implementation):
    x = _keep_channels_last(x)
    return _keep_channels_last(_correlate(x, kernel, dilation, before, implementation)), (x, kernel)


def _correlate_bwd(dilation, before, implementation, residuals, gradient):
    x, kernel = residuals
    gradient = _keep_channels_last(gradient)
    after = (kernel.shape[0] - 1) * dilation - before
    x_gradient = _correlate(gradient, kernel[::-1, ::-1], dilation, after, implementation)
    kernel_gradient = _kernel_gradient(x, gradient, kernel.shape[:2], dilation, before, implementation)
    return _keep_channels_last(x_gradient), kernel_gradient.astype(kernel.dtype)


_correlate.defvjp(_correlate_fwd, _correlate_bwd)


def _keep_channels_last(x):
    """Makes NVIDIA's programs lay x out as it is written here, where it is differentiated.

    Left to itself the compiler spreads the layouts that the spectra and the norms' sums like best over the whole
    network, and transposes for each matrix product: a step then moves 1.4 times the bytes (benchmarks/gpu_program.py).
    Not where nothing is differentiated: `jax.export` takes programs with this operation on request alone.
    """
    return lax.platform_dependent(x, cuda=_laid_out_as_written, default=lambda x: x)


def _laid_out_as_written(x):
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _kernel_gradient(x, gradient, kernel_size, dilation, before, implementation):
    arguments = {"kernel_size": kernel_size, "dilation": dilation, "before": before}
    if implementation is not None:
        return _KERNEL_GRADIENT[implementation](x, gradient, **arguments)
    few_taps = kernel_size[0] * kernel_size[1] <= _MOST_TAPS_TO_SHIFT
    on_cpu = _kernel_gradient_shift if few_taps else _kernel_gradient_fft
    return lax.platform_dependent(
        x,
        gradient,
        cpu=functools.partial(on_cpu, **arguments),
        cuda=functools.partial(_kernel_gradient_taps, **arguments),
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
    """Zeros (before, after) in time and in frequency; none in time where `before` is None."""
    time = (0, 0) if before is None else (before, (kernel_size[0] - 1) * dilation - before)
    return time, (kernel_size[1] // 2, kernel_size[1] // 2)


def _accumulator(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _padded(x, time, frequency):
    # A pad is also what makes XLA's CPU backend write its input once: any other point-wise operation before the taps
    # would be fused into the sum and computed again for each tap.
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


# shift: one multiply-add per tap. XLA fuses the taps of a pass into one loop over the output, with the channels as its
# vector. Past some 120 taps LLVM gives up vectorising it (70 times slower), and the weights and the rows of `x` that a
# pass touches should stay in the first-level cache, so a large kernel takes several passes of whole rows.

_TAPS_PER_PASS = 49


def _correlate_shift(x, kernel, dilation, before):
    kh, kw = kernel.shape[:2]
    padded = _padded(x, *_padding(kernel.shape, dilation, before))
    weights = kernel.astype(padded.dtype)
    shape = (x.shape[0], padded.shape[1] - (kh - 1) * dilation, *x.shape[2:])
    rows = max(1, _TAPS_PER_PASS // kw)
    further_passes = (kh - 1) // rows
    rows_of_first = kh - further_passes * rows

    def sum_of_rows(first, count):
        block = lax.dynamic_slice_in_dim(weights, first, count, axis=0)
        total = None
        for i in range(count):
            # A sum of its own per row: shorter chains of dependent additions.
            row = None
            for j in range(kw):
                window = lax.dynamic_slice(padded, (0, (first + i) * dilation, j, 0), shape)
                tap = window * block[i, j]
                row = tap if row is None else row + tap
            total = row if total is None else total + row
        return total

    def add_pass(index, total):
        return total + sum_of_rows(rows_of_first + index * rows, rows)

    total = sum_of_rows(0, rows_of_first)
    if further_passes:
        # A loop, since XLA would fuse passes written one after another into one.
        total = lax.fori_loop(0, further_passes, add_pass, total)
    return total.astype(x.dtype)


# The kernel's gradient by taps: products summed over `step` neighbouring bands in registers, then over the rest. XLA
# emits an element-wise sum and a stack as one vectorised parallel loop, but a reduction of shifted products as a scalar
# one, and it takes no more than eight operands into a stack.

_TAPS_PER_STACK = 8
_MOST_TAPS_TO_SHIFT = 49  # The FFT's cost does not grow with the kernel; it wins from 7 x 7 to 9 x 9 on.


def _kernel_gradient_shift(x, gradient, kernel_size, dilation, before):
    of_one = functools.partial(_kernel_gradient_of_one, kernel_size=kernel_size, dilation=dilation, before=before)
    if x.shape[0] == 1:
        return of_one(x, gradient)

    # Example by example, since every tap reads all of both arrays: one example's may stay in the cache.
    def add_example(index, total):
        return total + of_one(*(lax.dynamic_slice_in_dim(array, index, 1) for array in (x, gradient)))

    return lax.fori_loop(0, x.shape[0], add_example, jnp.zeros((*kernel_size, x.shape[3]), _accumulator(x)))


def _kernel_gradient_of_one(x, gradient, kernel_size, dilation, before):
    (kh, kw), (frames, bands) = kernel_size, x.shape[1:3]
    step = _bands_per_sum(bands)
    surplus = -bands % step
    time, (low, high) = _padding(kernel_size, dilation, before)
    padded = _padded(x, time, (low, high + surplus))
    gradient = _padded(gradient, (0, 0), (0, surplus)) if surplus else gradient.astype(padded.dtype)

    def gradient_of(padded, taps):
        """`[len(taps), C]` for taps (i, j)."""
        sums = []
        for i, j in taps:
            total = None
            for band in range(step):
                window = padded[:, i * dilation : i * dilation + frames, j + band : j + bands + surplus : step]
                product = window * gradient[:, :, band::step]
                total = product if total is None else total + product
            sums.append(total)
        return jnp.sum(jnp.stack(sums, axis=3), axis=(0, 1, 2))

    def gradient_of_all(padded, rows):
        taps = [(i, j) for i in range(rows) for j in range(kw)]
        groups = -(-len(taps) // _TAPS_PER_STACK)
        size = -(-len(taps) // groups)
        parts = [gradient_of(padded, taps[start : start + size]) for start in range(0, len(taps), size)]
        return jnp.concatenate(parts).reshape(rows, kw, -1)

    if kh <= 3:
        return gradient_of_all(padded, kh)
    # Compiled once for a row instead of once for every row.
    row = functools.partial(lax.dynamic_slice_in_dim, padded, slice_size=frames, axis=1)
    return lax.map(lambda i: gradient_of_all(row(i * dilation), 1)[0], jnp.arange(kh))


def _bands_per_sum(bands):
    """The divisor of `bands` nearest to 24 within 8 to 48; 24 (or fewer bands) where there is none, with padding."""
    divisors = [step for step in range(8, min(bands, 48) + 1) if bands % step == 0]
    return min(divisors, key=lambda step: abs(step - 24), default=min(bands, 24))


# fft: products of spectra over time and frequency, channels first because XLA transforms the last axes.


def _fft_size(x, kernel_size, dilation, before):
    """Lengths of a circle on which no tap wraps round to the other end."""
    padding = _padding(kernel_size, dilation, before)
    return [_smooth(max(length + max(zeros), sum(zeros) + 1)) for length, zeros in zip(x.shape[1:3], padding)]


def _smooth(length):
    """The next length with no prime factor above 7, which the FFT takes fastest."""
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def _spectrum(x, size):
    padded = _padded(x, *((0, circle - length) for circle, length in zip(size, x.shape[1:3])))
    return jnp.fft.rfft2(jnp.moveaxis(padded, 3, 1))


def _correlate_fft(x, kernel, dilation, before):
    (kh, kw), (frames, bands) = kernel.shape[:2], x.shape[1:3]
    size = _fft_size(x, kernel.shape, dilation, before)
    spread = jnp.zeros((1, (kh - 1) * dilation + 1, kw, x.shape[3]), _accumulator(x)).at[:, ::dilation].set(kernel)
    product = _spectrum(x, size) * jnp.conj(_spectrum(spread, size))
    circular = jnp.moveaxis(jnp.fft.irfft2(product, size), 1, 3)
    # Frame 0 of the output lies `before` frames ahead of the first input frame: at the end of the circle.
    circular = jnp.roll(circular, (before, kw // 2), axis=(1, 2))
    return circular[:, :frames, :bands].astype(x.dtype)


def _kernel_gradient_fft(x, gradient, kernel_size, dilation, before):
    (kh, kw), channels = kernel_size, x.shape[3]
    frames, bands = _fft_size(x, kernel_size, dilation, before)
    # Complex up to here: real and imaginary parts summed apart take 25 times as long for a batch of four.
    product = jnp.sum(_spectrum(x, (frames, bands)) * jnp.conj(_spectrum(gradient, (frames, bands))), axis=0)
    real, imag = (part.reshape(channels * frames, -1) for part in (product.real, product.imag))
    # Only kh x kw lags of the inverse transform are wanted: two small products with its matrix instead of all of it.
    bins = np.arange(bands // 2 + 1)
    weight = np.where((bins == 0) | (2 * bins == bands), 1.0, 2.0)[:, None] / (frames * bands)
    cos, sin = _rotation(bins[:, None], np.arange(kw) - kw // 2, bands)
    over_bands = real @ jnp.asarray(weight * np.hstack([cos, sin]), real.dtype)
    over_bands += imag @ jnp.asarray(weight * np.hstack([-sin, cos]), real.dtype)
    cos, sin = _rotation(np.arange(frames), np.arange(kh)[:, None] * dilation - before, frames)
    over_frames = jnp.asarray(np.stack([cos, -sin], axis=2), real.dtype)
    return jnp.einsum("itp,ctpj->ijc", over_frames, over_bands.reshape(channels, frames, 2, kw))


def _rotation(bins, lags, length):
    angle = 2 * np.pi / length * (bins * lags % length)
    return np.cos(angle), np.sin(angle)


# taps: what NVIDIA's GPUs take. A small kernel's taps are written out, which XLA makes one loop of; the caches serve
# the neighbours. A large one goes by its spectra.


def _correlate_taps(x, kernel, dilation, before):
    (kh, kw), (frames, bands) = kernel.shape[:2], x.shape[1:3]
    if kh * kw > _MOST_TAPS_TO_SHIFT:
        # The FFT wants all zeros to be its own, and a length that is known.
        known = before is not None and isinstance(frames, int)
        return (_correlate_fft if known else _correlate_lax)(x, kernel, dilation, before)
    padded = jnp.pad(x, ((0, 0), *_padding(kernel.shape, dilation, before), (0, 0)))
    # Written once: what comes before it would else be fused into the sum and computed again for each tap.
    padded = lax.optimization_barrier(padded)
    frames = padded.shape[1] - (kh - 1) * dilation
    total = None
    for i in range(kh):
        for j in range(kw):
            window = padded[:, i * dilation : i * dilation + frames, j : j + bands]
            tap = window.astype(_accumulator(x)) * kernel[i, j].astype(_accumulator(x))
            total = tap if total is None else total + tap
    return total.astype(x.dtype)


def _kernel_gradient_taps(x, gradient, kernel_size, dilation, before):
    (kh, kw), (frames, bands) = kernel_size, x.shape[1:3]
    if kh * kw > _MOST_TAPS_TO_SHIFT:
        return _kernel_gradient_fft(x, gradient, kernel_size, dilation, before)
    padded, gradient = _padded(x, *_padding(kernel_size, dilation, before)), gradient.astype(_accumulator(x))
    sums = [
        jnp.sum(padded[:, i * dilation : i * dilation + frames, j : j + bands] * gradient, axis=(0, 1, 2))
        for i in range(kh)
        for j in range(kw)
    ]
    return jnp.stack(sums).reshape(kh, kw, -1)


_FORWARD = {"lax": _correlate_lax, "shift": _correlate_shift, "fft": _correlate_fft, "taps": _correlate_taps}
_KERNEL_GRADIENT = {
    "lax": _kernel_gradient_lax,
    "shift": _kernel_gradient_shift,
    "fft": _kernel_gradient_fft,
    "taps": _kernel_gradient_taps,
}
