"""The depth-wise convolution: every implementation against its definition in NumPy, values and gradients."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import export

from saf_jax.model.depthwise import IMPLEMENTATIONS, depthwise_conv2d

TOLERANCE = 1e-4  # of each tensor's largest value
KERNELS = ((1, 3), (3, 1), (3, 3), (5, 5), (7, 7), (11, 11), (21, 21))
OURS = ("shift", "fft", "taps", None)


def random_arrays(shape, kernel_sides, dtype=np.float32, seed=0):
    """Input, kernel and cotangent."""
    random = np.random.default_rng(seed)
    kernel_shape = (*kernel_sides, shape[3])
    return tuple(jnp.asarray(random.standard_normal(size), dtype) for size in (shape, kernel_shape, shape))


def oracle(x, kernel, gradient, dilation, causal):
    """Value and both gradients in float64: the definition, tap by tap, with explicit zeros beyond the edges."""
    x, kernel, gradient = (np.asarray(array, np.float64) for array in (x, kernel, gradient))
    (kh, kw, _), (_, frames, bands, _) = kernel.shape, x.shape
    span = (kh - 1) * dilation
    before = span if causal else span // 2
    padding = ((0, 0), (before, span - before), (kw // 2, kw // 2), (0, 0))
    padded = np.pad(x, padding)
    value, padded_gradient, kernel_gradient = np.zeros_like(x), np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(kh):
        for j in range(kw):
            window = (slice(None), slice(i * dilation, i * dilation + frames), slice(j, j + bands))
            value += padded[window] * kernel[i, j]
            padded_gradient[window] += gradient * kernel[i, j]
            kernel_gradient[i, j] = np.sum(padded[window] * gradient, axis=(0, 1, 2))
    x_gradient = padded_gradient[:, before : before + frames, kw // 2 : kw // 2 + bands]
    return value, x_gradient, kernel_gradient


@functools.partial(jax.jit, static_argnames=("dilation", "causal", "implementation"))
def value_and_gradients(x, kernel, gradient, dilation, causal, implementation):
    convolve = functools.partial(depthwise_conv2d, time_dilation=dilation, causal=causal, implementation=implementation)
    value, pull_back = jax.vjp(convolve, x, kernel)
    return value, *pull_back(gradient)


def assert_close(ours, reference, tolerance=TOLERANCE):
    for name, mine, theirs in zip(("value", "x's gradient", "kernel's gradient"), ours, reference, strict=True):
        mine, theirs = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
        assert mine.shape == theirs.shape
        # A kernel that reaches past the whole input has taps of exactly zero gradient: hence the floor.
        limit = tolerance * max(np.max(np.abs(theirs)), 1e-3)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, None])
@pytest.mark.parametrize(("dilation", "causal"), [(1, False), (4, True)])
@pytest.mark.parametrize("sides", KERNELS)
def test_agrees_with_the_definition(sides, dilation, causal, implementation):
    arrays = random_arrays((2, 23, 13, 5), sides)
    ours = value_and_gradients(*arrays, dilation, causal, implementation)
    assert_close(ours, oracle(*arrays, dilation, causal), 2e-5)


@pytest.mark.parametrize(
    ("shape", "sides", "dilation", "causal"),
    [
        ((1, 200, 161, 64), (11, 11), 1, False),
        ((1, 300, 81, 64), (3, 1), 8, True),
        ((2, 300, 161, 16), (3, 3), 8, False),
        ((1, 60, 101, 32), (5, 5), 1, True),
        ((1, 120, 41, 24), (21, 21), 1, False),
        ((4, 1, 41, 16), (11, 11), 1, True),
    ],
)
def test_agrees_with_the_definition_at_the_networks_sizes(shape, sides, dilation, causal):
    arrays = random_arrays(shape, sides, seed=1)
    reference = oracle(*arrays, dilation, causal)
    for implementation in OURS:
        assert_close(value_and_gradients(*arrays, dilation, causal, implementation), reference)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    frames=st.integers(1, 40),
    bands=st.integers(1, 50),
    channels=st.sampled_from([1, 3, 8]),
    sides=st.sampled_from(KERNELS),
    dilation=st.sampled_from([1, 2, 3, 8]),
    causal=st.booleans(),
    implementation=st.sampled_from(OURS),
)
def test_any_shape_agrees(batch, frames, bands, channels, sides, dilation, causal, implementation):
    arrays = random_arrays((batch, frames, bands, channels), sides, seed=frames)
    ours = value_and_gradients(*arrays, dilation, causal, implementation)
    assert_close(ours, oracle(*arrays, dilation, causal))


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, None])
def test_causal_output_ignores_later_frames(implementation):
    x, kernel, _ = random_arrays((1, 20, 9, 4), (3, 3))
    convolve = functools.partial(depthwise_conv2d, time_dilation=2, causal=True, implementation=implementation)
    tail = jax.jit(jax.grad(lambda x: convolve(x, kernel)[:, :12].sum()))(x)[:, 12:]
    # The spectra of "fft" leave rounding where zeros belong.
    np.testing.assert_allclose(tail, 0, atol=1e-5 if implementation == "fft" else 0)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, None])
def test_vmap_over_inputs_and_kernels(implementation):
    random = np.random.default_rng(2)
    x = jnp.asarray(random.standard_normal((3, 1, 15, 9, 4)), jnp.float32)
    kernel = jnp.asarray(random.standard_normal((3, 5, 3, 4)), jnp.float32)
    run = functools.partial(value_and_gradients, dilation=2, causal=False, implementation=implementation)
    batched = jax.vmap(run)(x, kernel, x)
    for index in range(3):
        assert_close([array[index] for array in batched], oracle(x[index], kernel[index], x[index], 2, False))


@pytest.mark.parametrize("implementation", OURS)
@pytest.mark.parametrize("sides", [(3, 3), (11, 11)])
def test_gradient_of_gradient(implementation, sides):
    x, kernel, weight = random_arrays((1, 14, 12, 3), sides)

    def penalty(x, kernel, implementation):
        """A gradient penalty: depends on second derivatives with respect to both arguments."""

        def loss(x, kernel):
            y = depthwise_conv2d(x, kernel, time_dilation=2, causal=True, implementation=implementation)
            return jnp.sum(jnp.tanh(y) * weight)

        gradients = jax.grad(loss, argnums=(0, 1))(x, kernel)
        return sum(jnp.sum(gradient**2) for gradient in gradients)

    second = jax.jit(jax.grad(penalty, argnums=(0, 1)), static_argnums=2)
    for ours, reference in zip(second(x, kernel, implementation), second(x, kernel, "lax")):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=TOLERANCE * float(jnp.max(jnp.abs(reference))))


def test_forward_mode_is_laxs_alone():
    x, kernel, tangent = random_arrays((1, 10, 8, 2), (3, 3))

    def push_forward(implementation):
        convolve = functools.partial(depthwise_conv2d, kernel=kernel, implementation=implementation)
        return jax.jvp(convolve, (x,), (tangent,))[1]

    np.testing.assert_allclose(push_forward("lax"), depthwise_conv2d(tangent, kernel), atol=1e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        push_forward("shift")


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, None])
def test_bfloat16_input_is_summed_in_float32(implementation):
    arrays = random_arrays((1, 40, 30, 8), (11, 11), jnp.bfloat16)
    ours = value_and_gradients(*arrays, 1, False, implementation)
    assert [array.dtype for array in ours] == [jnp.bfloat16] * 3
    # One rounding of the result, half of 2^-8: sums in bfloat16 would be several times as far off.
    assert_close(ours, oracle(*arrays, 1, False), 2**-8)


def test_a_float32_kernel_with_bfloat16_input_gets_a_float32_gradient():
    x, _, gradient = random_arrays((1, 20, 12, 4), (3, 3), jnp.bfloat16)
    kernel = random_arrays((1, 1, 1, 4), (3, 3))[1]
    for implementation in [*IMPLEMENTATIONS, None]:
        value, x_gradient, kernel_gradient = value_and_gradients(x, kernel, gradient, 1, False, implementation)
        assert (value.dtype, x_gradient.dtype, kernel_gradient.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
        assert_close((value, x_gradient, kernel_gradient), oracle(x, kernel, gradient, 1, False), 2**-6)


def test_one_program_lowers_for_every_platform():
    specs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 30, 17, 8), (11, 11, 8), (2, 30, 17, 8))]
    run = jax.jit(functools.partial(value_and_gradients, dilation=1, causal=True, implementation=None))
    layouts = export.DisabledSafetyCheck.custom_call("LayoutConstraint")
    to_platforms = functools.partial(export.export, run, disabled_checks=[layouts])
    for platforms in (["cpu", "cuda", "tpu"], ["tpu"]):
        exported = to_platforms(platforms=platforms)(*specs)
        assert "stablehlo.convolution" in exported.mlir_module()
    assert "stablehlo.convolution" not in to_platforms(platforms=["cuda"])(*specs).mlir_module()
    exported = to_platforms(platforms=["cpu", "cuda", "tpu"])(*specs)
    arrays = random_arrays((2, 30, 17, 8), (11, 11))
    assert_close(exported.call(*arrays), oracle(*arrays, 1, True))


def test_only_differentiated_programs_for_nvidia_hold_layouts():
    specs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 30, 17, 8), (11, 11, 8), (2, 30, 17, 8))]
    gradients = jax.jit(functools.partial(value_and_gradients, dilation=1, causal=True, implementation=None))
    assert gradients.trace(*specs).lower(lowering_platforms=("cuda",)).as_text().count("LayoutConstraint") >= 4
    assert "LayoutConstraint" not in gradients.trace(*specs).lower(lowering_platforms=("cpu",)).as_text()
    forward = jax.jit(depthwise_conv2d).trace(*specs[:2]).lower(lowering_platforms=("cuda",)).as_text()
    assert "LayoutConstraint" not in forward


@pytest.mark.parametrize("implementation", ["lax", "shift", None])
def test_a_program_of_any_length_can_be_exported(implementation):
    (frames,) = export.symbolic_shape("T")
    convolve = jax.jit(functools.partial(depthwise_conv2d, implementation=implementation))
    specs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, frames, 17, 8), (11, 11, 8))]
    exported = export.export(convolve, platforms=["cpu", "cuda"])(*specs)
    for length in (3, 30):
        x, kernel, _ = random_arrays((1, length, 17, 8), (11, 11))
        np.testing.assert_allclose(exported.call(x, kernel), convolve(x, kernel), atol=1e-4)


def test_the_choice_on_a_cpu_has_no_grouped_convolution():
    arrays = random_arrays((1, 30, 17, 8), (11, 11))
    if jax.devices()[0].platform != "cpu":
        pytest.skip("the choice on other platforms is the convolution of their library")
    compiled = value_and_gradients.lower(*arrays, 1, False, None).compile().as_text()
    assert "convolution(" not in compiled and " conditional(" not in compiled


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "options", "message"),
    [
        ((1, 5, 5), (3, 3, 4), {}, r"x is \[B, T, F, C\]"),
        ((1, 5, 5, 4), (3, 3, 5), {}, r"kernel \[kh, kw, C\]"),
        ((1, 5, 5, 4), (2, 3, 4), {}, "odd"),
        ((1, 5, 5, 4), (3, 4, 4), {}, "odd"),
        ((1, 5, 5, 4), (3, 3, 4), {"time_dilation": 0}, "time_dilation"),
        ((1, 5, 5, 4), (3, 3, 4), {"implementation": "fast"}, "lax, shift, fft"),
    ],
)
def test_wrong_arguments_are_named(x_shape, kernel_shape, options, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(jnp.zeros(x_shape), jnp.zeros(kernel_shape), **options)


@pytest.mark.parametrize(("sides", "dilation"), [((11, 11), 1), ((3, 1), 4)])
def test_pieces_that_know_their_past_are_the_whole(sides, dilation):
    x, kernel, _ = random_arrays((2, 23, 7, 3), sides)
    span = (sides[0] - 1) * dilation
    whole = depthwise_conv2d(x, kernel, time_dilation=dilation, causal=True)
    past = jnp.zeros((2, span, 7, 3))
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, 23)):
        piece = depthwise_conv2d(x[:, start:stop], kernel, time_dilation=dilation, causal=True, past=past)
        np.testing.assert_allclose(piece, whole[:, start:stop], atol=1e-5)
        past = jnp.concatenate([past, x[:, start:stop]], axis=1)[:, stop - start :]


@pytest.mark.parametrize(("sides", "convolutions"), [((11, 11), 1), ((3, 3), 0)])
def test_pieces_lower_for_a_gpu(sides, convolutions):
    """A large kernel has no spectra there: the zeros that they need are not in front of a piece."""
    shapes = (1, 4, 9, 2), (*sides, 2), (1, sides[0] - 1, 9, 2)
    x, kernel, past = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    run = jax.jit(lambda x, kernel, past: depthwise_conv2d(x, kernel, causal=True, past=past))
    module = export.export(run, platforms=["cuda"])(x, kernel, past).mlir_module()
    assert module.count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize("changes", [{"past": jnp.zeros((1, 3, 5, 2))}, {"causal": False}, {"implementation": "fft"}])
def test_a_past_that_does_not_fit_is_refused(changes):
    x, kernel, _ = random_arrays((1, 4, 5, 2), (3, 3))
    with pytest.raises(ValueError, match=r"past is \[B, 2, F, C\]"):
        depthwise_conv2d(x, kernel, **{"causal": True, "past": jnp.zeros((1, 2, 5, 2)), **changes})
