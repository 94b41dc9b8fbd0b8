import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from networks import model, random_variables

from saf_jax.model.layers import (
    DenseBlock,
    DepthwiseConv,
    Norm,
    Pointwise,
    PReLU,
    apply_mask,
    flat_product,
    layer_norm,
    narrow_product,
)

B, T, F, C = 2, 9, 7, 8
FRAMES = [9, 6]
MASK = (np.arange(T) < np.array(FRAMES)[:, None])[:, :, None, None]


def features(seed=0, channels=C):
    return np.random.default_rng(seed).normal(0.3, 1.2, (B, T, F, channels)).astype(np.float32)


def assert_close(got, wanted, tolerance=2e-5):
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=tolerance * np.abs(wanted).max(), rtol=0)


def test_apply_mask_zeroes_what_lies_beyond_the_end():
    x = features()
    np.testing.assert_array_equal(apply_mask(x, MASK), oracle.masked(x, FRAMES))
    assert apply_mask(x, None) is x


@pytest.mark.parametrize("sizes", [(8,), (8, 3, 5)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_pointwise_is_the_matrix_product_of_the_concatenation(sizes, use_bias):
    inputs = [features(i, size) for i, size in enumerate(sizes)]
    layer = Pointwise(6, use_bias=use_bias)
    variables = random_variables(layer, *inputs)
    assert variables["params"]["kernel"].shape == (sum(sizes), 6)
    assert ("bias" in variables["params"]) == use_bias
    assert_close(layer.apply(variables, *inputs), oracle.pointwise(variables["params"], *inputs))


def gradients_of(product, x, kernel):
    def loss(x, kernel):
        return jnp.sum(jnp.sin(product(x, kernel)) ** 2)

    return jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("product", "outputs"), [(flat_product, 5), (narrow_product, 2)])
def test_products_have_the_gradients_of_a_matrix_product(product, outputs, dtype):
    x, kernel = (jnp.asarray(a, dtype) for a in (features(), features(1, outputs)[0, :, 0][:C]))
    tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
    for got, wanted in zip(gradients_of(product, x, kernel)(x, kernel), gradients_of(jnp.matmul, x, kernel)(x, kernel)):
        assert got.dtype == dtype
        assert_close(*(np.asarray(array, np.float32) for array in (got, wanted)), tolerance)


def test_gradient_of_a_kernel_takes_the_outputs_gradient_as_it_lies():
    x, kernel = jnp.asarray(features()), jnp.ones((C, 2 * C))
    transposed = f"f32[{2 * C},{B * T * F}]"
    assert transposed in gradients_of(jnp.matmul, x, kernel).as_text()
    assert transposed not in gradients_of(flat_product, x, kernel).as_text()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "columns", "dilation"), [(3, 3, 1), (3, 3, 2), (5, 5, 1), (3, 1, 4)])
def test_depthwise_conv_equals_loops_and_lax(rows, columns, dilation, causal):
    x = features()
    layer = DepthwiseConv(rows, columns, dilation, causal)
    variables = random_variables(layer, x, MASK)
    p = variables["params"]
    got = layer.apply(variables, x, MASK)
    assert_close(got, oracle.depthwise(p, x, FRAMES, dilation, causal))
    span = (rows - 1) * dilation
    wanted = jax.lax.conv_general_dilated(
        jnp.where(MASK, x, 0.0),
        p["kernel"].reshape(rows, columns, 1, C),
        (1, 1),
        [(span, 0) if causal else (span // 2, span // 2), (columns // 2, columns // 2)],
        rhs_dilation=(dilation, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=C,
    )
    assert_close(got, np.asarray(wanted) + p["bias"])


def test_prelu_has_a_slope_for_each_channel():
    x, layer = features(), PReLU()
    variables = random_variables(layer, x)
    assert variables["params"]["slope"].shape == (C,)
    assert_close(layer.apply(variables, x), oracle.prelu(variables["params"], x))


@pytest.mark.parametrize("kind", ["layer", "group", "instance", "batch"])
def test_norm_equals_its_definition(kind):
    config, x = model(norm=kind), features()
    layer = Norm(config)
    variables = random_variables(layer, x, None, False)
    got = layer.apply(variables, x, MASK, False)
    assert_close(got, oracle.norm(variables["params"], variables.get("batch_stats"), x, config))


@pytest.mark.parametrize("kind", ["layer", "group", "instance", "batch"])
def test_norm_of_a_constant_is_finite_with_its_gradient(kind):
    x = np.zeros((1, 2, F, C), np.float32)
    layer = Norm(model(norm=kind))
    variables = random_variables(layer, x, None, False)
    gradient = jax.grad(lambda x: jnp.sum(layer.apply(variables, x, None, False) ** 2))(x)
    assert np.isfinite(gradient).all()


def test_layer_norm_has_the_gradients_of_its_definition():
    x = jnp.asarray(features() + np.linspace(-3, 30, F, dtype=np.float32)[:, None])
    scale, bias = jnp.linspace(-0.5, 2, C), jnp.linspace(1, -1, C)

    def defined(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    def gradients(norm, dtype):
        arguments = [argument.astype(dtype) for argument in (x, scale, bias)]
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(norm(*a)) ** 2), (0, 1, 2)))(*arguments)

    with jax.enable_x64(True):
        wanted = gradients(defined, jnp.float64)
    for got, exact in zip(gradients(layer_norm, jnp.float32), wanted):
        assert got.dtype == jnp.float32
        assert_close(got, exact, 3e-5)


def test_gradient_of_a_layer_norm_keeps_no_second_array_of_the_inputs_size():
    x, scale = jnp.asarray(features()), jnp.ones(C)
    kept = [array for array in jax.tree.leaves(jax.vjp(layer_norm, x, scale, scale)[1]) if array.size == x.size]
    assert len(kept) == 1 and np.array_equal(kept[0], x)


def test_batch_norm_in_training_takes_the_valid_frames_of_the_whole_batch():
    config, x = model(norm="batch"), features()
    layer = Norm(config)
    variables = random_variables(layer, x, None, False)
    # What lies beyond the end must not count, however large it is.
    x = np.where(MASK, x, 1e3).astype(np.float32)
    got, changed = layer.apply(variables, x, MASK, True, mutable=["batch_stats"])
    valid = np.concatenate([x[b, :n].reshape(-1, C) for b, n in enumerate(FRAMES)]).astype(np.float64)
    mean, variance = valid.mean(axis=0), valid.var(axis=0)
    p, old, new = variables["params"], variables["batch_stats"], changed["batch_stats"]
    wanted = (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]
    for b, n in enumerate(FRAMES):
        assert_close(np.asarray(got)[b, :n], wanted[b, :n])
    np.testing.assert_allclose(new["mean"], 0.99 * old["mean"] + 0.01 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["variance"], 0.99 * old["variance"] + 0.01 * variance, rtol=1e-5)


def test_gradient_of_a_batch_norm_wants_its_input_alone():
    x, layer = jnp.asarray(features()), Norm(model(norm="batch"))
    variables = random_variables(layer, x, None, True)

    def normalised(x):
        return layer.apply(variables, x, None, True, mutable=["batch_stats"])[0]

    kept = [array for array in jax.tree.leaves(jax.vjp(normalised, x)[1]) if array.size == x.size]
    # The input, and twice the input for the gradient of its square: nothing centred, nothing scaled.
    assert kept and all(np.array_equal(array, x) or np.array_equal(array, 2 * x) for array in kept)


def test_batch_norm_at_inference_changes_no_averages():
    x, layer = features(), Norm(model(norm="batch"))
    variables = random_variables(layer, x, None, False)
    _, changed = layer.apply(variables, x, MASK, False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("causal", [False, True])
def test_dense_block_equals_its_definition(causal):
    config, x = model(causal=causal, norm="instance"), features()
    block = DenseBlock(config)
    variables = random_variables(block, x, MASK, False)
    assert_close(block.apply(variables, x, MASK, False), oracle.dense_block(variables["params"], {}, x, FRAMES, config))


def test_bfloat16_layers_compute_in_bfloat16_and_keep_float32_parameters():
    x, config = features(), model()
    block = DenseBlock(config, dtype=jnp.bfloat16)
    variables = random_variables(block, x, MASK, False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    got = block.apply(variables, x, MASK, False)
    assert got.dtype == jnp.bfloat16
    assert_close(np.asarray(got, np.float32), oracle.dense_block(variables["params"], {}, x, FRAMES, config), 0.03)


@pytest.mark.parametrize("layer", [Pointwise(8), DepthwiseConv(1, 3), PReLU()], ids=["pointwise", "depthwise", "prelu"])
def test_bfloat16_sums_gradients_over_positions_in_float32(layer):
    """In bfloat16 a sum of many terms of one sign stops to grow: a 30th of a bias's gradient came out."""
    layer = layer if isinstance(layer, PReLU) else layer.clone(dtype=jnp.bfloat16)
    x = -np.abs(np.random.default_rng(0).normal(1, 0.2, (4, 200, 41, 8))).astype(np.float32)
    cotangent = np.random.default_rng(1).uniform(0.5, 1.5, x.shape).astype(np.float32)
    arguments = () if not isinstance(layer, DepthwiseConv) else (None,)
    variables = random_variables(layer, x, *arguments)
    name = "slope" if isinstance(layer, PReLU) else "bias"

    @jax.jit
    def gradient(params, x, cotangent):
        def loss(params):
            out = layer.apply({"params": params}, x, *arguments)
            return jnp.sum(out.astype(jnp.float32) * cotangent)

        return jax.grad(loss)(params)[name]

    rounded = cotangent.astype(jnp.bfloat16)
    got = gradient(variables["params"], x.astype(jnp.bfloat16), rounded.astype(np.float32))
    terms = rounded.astype(np.float64) * (x.astype(jnp.bfloat16).astype(np.float64) if name == "slope" else 1.0)
    np.testing.assert_allclose(got, terms.sum((0, 1, 2)), rtol=0.01)
