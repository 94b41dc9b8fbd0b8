import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saf_jax.model.discriminator import Discriminator

FRAMES = np.array([37, 20, 1, 0], np.int32)
MODULE = Discriminator(width=4)

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def magnitudes():
    inside = np.arange(37)[:, None] < FRAMES[:, None, None]
    return np.abs(np.random.default_rng(0).standard_normal((2, 4, 37, 21))).astype(np.float32) * inside


@pytest.fixture(scope="module")
def params(magnitudes):
    return jax.jit(MODULE.init)(jax.random.key(0), *magnitudes, FRAMES)


judged = jax.jit(MODULE.apply)


def test_neither_padding_nor_company_changes_a_score(params, magnitudes):
    scores = np.asarray(judged(params, *magnitudes, FRAMES))
    assert scores.shape == (4,)
    assert np.ptp(scores[:3]) > 1e-3
    assert ((scores > 0) & (scores < 1)).all()
    longer = np.pad(magnitudes, ((0, 0), (0, 0), (0, 30), (0, 0)), constant_values=9.0)
    np.testing.assert_allclose(judged(params, *longer, FRAMES), scores, rtol=1e-5)
    np.testing.assert_allclose(judged(params, *magnitudes[:, 1:2], FRAMES[1:2]), scores[1:2], rtol=1e-5)


def test_it_tells_target_from_estimate(params, magnitudes):
    there, back = judged(params, *magnitudes, FRAMES), judged(params, *magnitudes[::-1], FRAMES)
    assert np.abs(np.asarray(there - back))[:2].min() > 1e-3


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0])
def test_gradients_are_finite_at_silence(params, magnitudes, size):
    def loss(params, target, estimate):
        return jnp.sum(MODULE.apply(params, target * size, estimate * size, FRAMES))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, *magnitudes)):
        assert np.isfinite(leaf).all()
