import numpy as np
import oracle
import pytest
from networks import model, random_variables

from saf_jax.model.fusion import ConvolutionalAttention, SAFLayer, StreamFusion

FRAMES = [9, 6]
MASK = (np.arange(9) < np.array(FRAMES)[:, None])[:, :, None, None]


def features(seed=0):
    return np.random.default_rng(seed).normal(0.3, 1.2, (2, 9, 7, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "changes", [{}, {"attention_kernel": 3, "causal": True}, {"attention_kernel": 21, "norm": "group"}], ids=str
)
def test_convolutional_attention_is_a_hadamard_product_of_a_large_convolution_and_values(changes):
    config, x = model(**changes), features()
    module = ConvolutionalAttention(config)
    variables = random_variables(module, x, MASK, False)
    side = config.attention_kernel
    assert variables["params"]["large_kernel"]["kernel"].shape == (side, side, 8)
    wanted = oracle.convolutional_attention(variables["params"], {}, x, FRAMES, config)
    np.testing.assert_allclose(module.apply(variables, x, MASK, False), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ["attention", "local", "tcn"]),
        ({"attention_kernel": 0}, ["local", "tcn"]),
        ({"local_window": 0}, ["attention", "tcn"]),
        ({"tcn_dilations": ()}, ["attention", "local"]),
    ],
    ids=str,
)
def test_layer_is_attention_then_local_attention_then_tcn(changes, parts):
    config, x = model(**changes), features()
    module = SAFLayer(config)
    variables = random_variables(module, x, MASK, False)
    assert sorted(variables["params"]) == parts
    wanted = oracle.saf_layer(variables["params"], {}, x, FRAMES, config)
    np.testing.assert_allclose(module.apply(variables, x, MASK, False), wanted, atol=2e-4)


@pytest.mark.parametrize("kind", ["concatenate", "add", "gate"])
def test_stream_fusion_equals_its_definition(kind):
    config, streams = model(fusion=kind), [features(0), features(1)]
    module = StreamFusion(config)
    variables = random_variables(module, streams)
    wanted = oracle.fusion(variables.get("params"), streams, config)
    np.testing.assert_allclose(module.apply(variables, streams), wanted, atol=1e-4)


def test_a_single_stream_passes_through():
    module = StreamFusion(model())
    assert random_variables(module, [features()]) == {}
    np.testing.assert_array_equal(module.apply({}, [features()]), features())
