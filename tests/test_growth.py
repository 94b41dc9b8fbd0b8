import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from saf_jax.errors import UserError
from saf_jax.growth import can_grow, grow, with_layers_of
from saf_jax.model.net import SAFNet
from saf_jax.pretrained import initial_variables, save_weights
from saf_jax.training_step import init_state

pytestmark = pytest.mark.usefixtures("quick_compile")


def grown(given, wanted):
    variables = networks.net_variables(given)
    return variables, grow(variables, given.model, wanted.model, given.stft.bins)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "batch", "fold_first": True, "frequency_stride": 4, "band_bias": True},
        {"norm": "layer", "fusion": "gate", "causal": True},
        {"norm": "group", "fusion": "add", "outputs": "mask"},
    ],
    ids=lambda changes: changes["norm"],
)
@pytest.mark.parametrize("larger", [{"width": 16, "layers": 1}, {"width": 24, "layers": 3}], ids=str)
def test_a_grown_network_computes_what_the_small_one_does(changes, larger):
    given, wanted = networks.config(**changes), networks.config(**changes, **larger)
    variables, more = grown(given, wanted)
    kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), networks.net_variables(wanted))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), more) == kinds
    spectrum = networks.spectrum(2, 20, given.stft.bins)
    small = jax.jit(SAFNet(given.model).apply)(variables, spectrum, jnp.array([20, 13]))
    large = jax.jit(SAFNet(wanted.model).apply)(more, spectrum, jnp.array([20, 13]))
    np.testing.assert_allclose(large, small, atol=2e-5 * float(np.abs(small).max()))


def test_missing_layers_are_those_of_the_deeper_network_but_add_nothing():
    given, wanted = networks.config(norm="batch", layers=1), networks.config(norm="batch", layers=3)
    variables, deeper = networks.net_variables(given), networks.net_variables(wanted, seed=1)
    more = with_layers_of(variables, deeper)
    assert jax.tree.map(jnp.shape, more) == jax.tree.map(jnp.shape, deeper)
    inner = jax.tree.map(np.array_equal, more["batch_stats"]["layer_2"], deeper["batch_stats"]["layer_2"])
    assert all(jax.tree.leaves(inner))
    spectrum = networks.spectrum(2, 20, given.stft.bins)
    np.testing.assert_allclose(
        jax.jit(SAFNet(wanted.model).apply)(more, spectrum),
        jax.jit(SAFNet(given.model).apply)(variables, spectrum),
        rtol=1e-5,
        atol=1e-6,
    )


def test_equal_channels_part_ways():
    """Were the gradients of two equal channels equal, they would stay one channel for ever."""
    given, wanted = networks.config(norm="batch"), networks.config(norm="batch", width=16, layers=2)
    _, variables = grown(given, wanted)
    spectrum = networks.spectrum(1, 20, given.stft.bins)
    target = networks.spectrum(1, 20, given.stft.bins, seed=1)

    @jax.jit
    def gradient(params):
        def loss(params):
            return jnp.mean(
                jnp.abs(SAFNet(wanted.model).apply({**variables, "params": params}, spectrum) - target) ** 2
            )

        return jax.grad(loss)(params)

    params = gradient(variables["params"])
    kernel = np.asarray(params["layer_0"]["attention"]["large_kernel"]["kernel"])
    first, second = kernel[..., 0::2], kernel[..., 1::2]
    assert np.all(np.linalg.norm(first - second, axis=(0, 1)) > 0.05 * np.linalg.norm(first, axis=(0, 1)))
    # The new layer does nothing yet, but learns.
    assert np.any(np.asarray(params["layer_1"]["attention"]["out"]["kernel"]) != 0)


def test_which_networks_grow():
    small = networks.model()
    assert can_grow(small, networks.model(width=16)) and can_grow(small, networks.model(layers=3))
    for other in (
        networks.model(width=12),
        networks.model(width=4),
        networks.model(width=16, attention_kernel=3),
        networks.model(width=16, causal=True),
    ):
        assert not can_grow(small, other)
    assert not can_grow(networks.model(layers=2), small)
    with pytest.raises(ValueError, match="differ in more than width"):
        grow({}, networks.model(layers=2), small, 17)


def test_training_starts_from_a_smaller_network(tmp_path):
    given, wanted = networks.least(norm="batch"), networks.least(norm="batch", width=8, layers=2)
    path = tmp_path / "small.safetensors"
    save_weights(path, given, networks.net_variables(given))
    start = dataclasses.replace(wanted, train=dataclasses.replace(wanted.train, init_from=str(path)))
    state = init_state(start, initial_variables(start))
    frozen = dataclasses.replace(start, train=dataclasses.replace(start.train, freeze_norm=True))
    with pytest.raises(UserError, match=r"train\.freeze_norm: the layers that .* has not have no averages to freeze"):
        initial_variables(frozen)
    expected = grow(networks.net_variables(given), given.model, wanted.model, given.stft.bins, seed=start.train.seed)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected["params"])
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, expected["batch_stats"])
