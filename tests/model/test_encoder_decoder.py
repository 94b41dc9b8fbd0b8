import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import model, random_variables

from saf_jax.model.decoder import SpectrumDecoder
from saf_jax.model.encoder import SpectrumEncoder, fold_bands, unfold_bands

VARIANTS = [{}, {"frequency_stride": 4}, {"dense_dilations": (), "norm": "batch"}, {"fold_first": True}]
FRAMES = [6, 4]
MASK = (np.arange(6) < np.array(FRAMES)[:, None])[:, :, None, None]


def features(bands, channels, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1.2, (2, 6, bands, channels)).astype(np.float32)


@settings(max_examples=12, deadline=None)
@given(bands=st.integers(1, 9), stride=st.sampled_from([2, 4]), channels=st.integers(1, 3))
def test_folding_puts_neighbours_side_by_side_and_unfolding_takes_them_apart(bands, stride, channels):
    x = features(bands, channels)
    folded = np.asarray(fold_bands(x, stride))
    assert folded.shape == (2, 6, -(-bands // stride), stride * channels)
    for f in range(bands):
        np.testing.assert_array_equal(folded[:, :, f // stride, f % stride * channels :][..., :channels], x[:, :, f])
    assert np.abs(folded).sum() == pytest.approx(np.abs(x).sum(), rel=1e-5)
    np.testing.assert_array_equal(unfold_bands(folded, stride, bands), x)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_encoder_equals_its_definition(changes, channels):
    config, x = model(**changes), features(13, channels)
    module = SpectrumEncoder(config)
    variables = random_variables(module, x, MASK, False)
    got = module.apply(variables, x, MASK, False)
    assert got.shape == (2, 6, -(-13 // config.frequency_stride), 8)
    wanted = oracle.encoder(variables["params"], variables.get("batch_stats", {}), x, FRAMES, config)
    np.testing.assert_allclose(got, wanted, atol=2e-4)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_decoder_equals_its_definition(changes, channels):
    config = model(**changes)
    x = features(-(-13 // config.frequency_stride), 8)
    module = SpectrumDecoder(config, bands=13, channels=channels)
    variables = random_variables(module, x, MASK, False)
    got = module.apply(variables, x, MASK, False)
    assert got.shape == (2, 6, 13, channels)
    wanted = oracle.decoder(variables["params"], variables.get("batch_stats", {}), x, FRAMES, config, 13)
    np.testing.assert_allclose(got, wanted, atol=2e-4)
