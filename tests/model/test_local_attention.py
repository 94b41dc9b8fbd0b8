import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from networks import model, random_variables

from saf_jax.model.local_attention import LocalBandAttention, local_attention


def features(seed=0, bands=7):
    return np.random.default_rng(seed).normal(0, 1.5, (2, 3, bands, 8)).astype(np.float32)


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("window", [1, 3, 5, 7])
def test_equals_a_softmax_over_each_bands_neighbours(heads, window):
    query, key, value = (features(seed) for seed in range(3))
    got = local_attention(query, key, value, heads, window)
    np.testing.assert_allclose(got, oracle.attend(query, key, value, heads, window), atol=2e-5)


def test_fewer_bands_than_the_window():
    query, key, value = (features(seed, bands=2) for seed in range(3))
    wanted = oracle.attend(query, key, value, 2, 7)
    np.testing.assert_allclose(local_attention(query, key, value, 2, 7), wanted, atol=2e-5)


def test_bands_beyond_the_edge_have_no_weight():
    # Zeros at the edge would take weight from the real bands: the average of ones would fall below one.
    ones = np.ones((1, 1, 7, 8), np.float32)
    np.testing.assert_allclose(local_attention(features()[:1, :1], features(1)[:1, :1], ones, 2, 5), 1.0, atol=1e-6)


def test_a_window_of_one_passes_the_values_on():
    np.testing.assert_allclose(local_attention(features(), features(1), features(2), 2, 1), features(2), atol=1e-6)


@pytest.mark.parametrize("size", [1e4, 0.0])
def test_extreme_scores_stay_finite_with_their_gradients(size):
    query = size * features()

    def total(query, key, value):
        return jnp.sum(local_attention(query, key, value, 2, 3) ** 2)

    gradients = jax.grad(total, argnums=(0, 1, 2))(query, features(1), features(2))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_module_equals_its_definition(norm):
    config, x = model(norm=norm, local_window=5), features()
    module = LocalBandAttention(config)
    variables = random_variables(module, x, None, False)
    assert "bias" not in variables["params"]["key"]
    wanted = oracle.local_attention(variables["params"], variables.get("batch_stats", {}), x, config)
    np.testing.assert_allclose(module.apply(variables, x, None, False), wanted, atol=1e-4)
