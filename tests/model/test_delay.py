import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from saf_jax.model.cost import context_frames
from saf_jax.model.delay import network_delay
from saf_jax.model.net import SAFNet

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize(
    "changes",
    [{"fusion": "gate"}, {"causal": True}, {"fold_first": True, "norm": "batch", "tcn_kernel": 5}],
    ids=str,
)
def test_pieces_give_the_estimate_of_the_whole_signal_late(changes):
    config = networks.model(**changes)
    model, delay, piece, frames = SAFNet(config), network_delay(config), 9, np.array([30, 21])
    rng = np.random.default_rng(0)
    spectrum = (rng.standard_normal((2, 30, 17)) + 1j * rng.standard_normal((2, 30, 17))).astype(np.complex64)
    variables = networks.random_variables(model, spectrum)
    whole = model.apply(variables, spectrum, frames)

    count = -(-(30 + delay) // piece) * piece
    # What comes after a signal's end is not silence but anything: it must not matter.
    longer = np.concatenate([spectrum, spectrum[:, : count - 30]], axis=1)
    inside = np.arange(count) < frames[:, None]
    step = jax.jit(lambda state, part, valid: model.apply({**variables, **state}, part, valid, mutable=["past"]))
    state, estimates = {}, []
    for start in range(0, count, piece):
        estimate, state = step(state, longer[:, start : start + piece], inside[:, start : start + piece])
        estimates.append(estimate)
    late = jnp.concatenate(estimates, axis=1)

    np.testing.assert_array_equal(late[:, :delay], 0)
    np.testing.assert_allclose(late[:, delay : delay + 30], whole, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_delay_is_what_the_network_looks_ahead(causal):
    config = networks.model(causal=causal, tcn_kernel=5, layers=2)
    assert network_delay(config) == context_frames(config)[1]
    assert (network_delay(config) == 0) == causal
