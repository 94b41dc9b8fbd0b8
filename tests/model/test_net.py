import typing

import jax
import jax.numpy as jnp
import networks
import numpy as np
import oracle
import pytest
from networks import model

import saf_jax
from saf_jax.config import Config, ModelConfig
from saf_jax.model.cost import context_frames, count_costs
from saf_jax.model.net import SAFNet

pytestmark = pytest.mark.usefixtures("quick_compile")

SHAPE = (2, 9, 13)
FRAMES = np.array([9, 6], np.int32)

# Together they run every value of every field that the paper leaves open; what is not named is as in `LEAN`.
LEAN = {"attention_kernel": 3, "dense_dilations": (2,), "tcn_dilations": (1,)}
EXPERIMENTS = [
    {"attention_kernel": 5},
    {"streams": "magnitude_phase", "local_window": 1, "norm": "batch"},
    {"streams": "magnitude", "local_window": 0, "attention_kernel": 7, "norm": "group", "outputs": "mask"},
    {"streams": "complex", "local_window": 5, "attention_kernel": 9, "norm": "instance", "outputs": "bias"},
    {"fusion": "add", "local_window": 7, "attention_kernel": 11, "frequency_stride": 4},
    {"fusion": "gate", "attention_kernel": 13, "norm": "batch", "band_bias": True, "causal": True},
    {"tcn_dilations": (), "attention_kernel": 15, "heads": 8},
    {"tcn_kernel": 5, "local_window": 5, "attention_kernel": 17, "norm": "group", "causal": True},
    {"dense_dilations": (), "attention_kernel": 19, "frequency_stride": 4, "causal": True},
    {"layers": 2, "attention_kernel": 0, "fold_first": True, "norm": "instance", "outputs": "mask"},
    {"layers": 0, "outputs": "bias"},
    {"local_window": 7, "attention_kernel": 21, "heads": 4, "causal": True},
    {"layer_kind": "transformer", "layers": 2, "feedforward_factor": 3},
    {"layer_kind": "transformer", "norm": "batch", "frequency_stride": 4, "fold_first": True},
]


def apply(config, variables, spectrum, frames=None, **kwargs):
    return SAFNet(config).apply(variables, spectrum, frames, **kwargs)


def variables_of(config):
    return networks.random_variables(SAFNet(config), networks.spectrum(*SHAPE))


def may_lack_a_part(path, config):
    """True for parameters that have no gradient by their nature."""
    name = jax.tree_util.keystr(path)
    alone = config.local_window == 1 and ("query" in name or "key" in name)  # a softmax over one band is 1
    shift = config.norm == "instance" and "bias" in name  # a norm over F takes away what is the same in all bands
    return alone or shift


def test_the_experiments_cover_all_values():
    tried = [model(**{**LEAN, **changes}) for changes in EXPERIMENTS]
    for name in ("streams", "layer_kind", "norm", "fusion", "outputs", "frequency_stride"):
        values = set(typing.get_args(ModelConfig.__annotations__[name]))
        assert {getattr(config, name) for config in tried} == values, name
    assert {config.local_window for config in tried} == {0, 1, 3, 5, 7}
    assert {config.attention_kernel for config in tried} == {0, *range(3, 22, 2)}
    assert {config.causal for config in tried} == {config.fold_first for config in tried} == {True, False}


@pytest.mark.parametrize("changes", EXPERIMENTS, ids=str)
def test_every_experiment_equals_the_plain_network_and_trains_all_its_parameters(changes):
    config = model(**{**LEAN, **changes})
    variables, spectrum = variables_of(config), networks.spectrum(*SHAPE)
    target = networks.spectrum(*SHAPE, seed=1)

    def loss(params):
        estimate = apply(config, {**variables, "params": params}, spectrum, FRAMES)
        return jnp.mean(jnp.abs(estimate - target) ** 2), estimate

    (_, estimate), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert estimate.shape == SHAPE
    assert estimate.dtype == jnp.complex64
    wanted = oracle.net(variables, spectrum, FRAMES, config)
    assert np.abs(estimate - wanted).max() < 1e-4 * np.abs(wanted).max()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-6 or may_lack_a_part(path, config), f"{path} has no part in the output"


def test_the_network_of_the_public_names():
    config = saf_jax.load_config("paper", ["model.layers=1", "model.width=4", "model.dense_dilations=[1]"])
    spectrum = jnp.asarray(networks.spectrum(1, 3, 161))
    model = saf_jax.SAFNet(config.model)
    variables = jax.jit(model.init)(jax.random.key(0), spectrum)
    estimate = jax.jit(model.apply)(variables, spectrum, frames=None)
    assert estimate.shape == spectrum.shape
    assert estimate.dtype == jnp.complex64
    # A fresh network halves the spectrum or so: mask near 1/2, bias near 0.
    assert np.abs(np.asarray(estimate) - 0.5 * np.asarray(spectrum)).mean() < 0.2
    assert saf_jax.count_parameters(variables) == count_costs(config)[0]


def test_vmap_changes_nothing():
    config, spectrum = model(**LEAN), networks.spectrum(*SHAPE)
    variables = variables_of(config)
    one_by_one = jax.jit(jax.vmap(lambda one, n: apply(config, variables, one[None], n[None])[0]))(spectrum, FRAMES)
    np.testing.assert_allclose(one_by_one, oracle.net(variables, spectrum, FRAMES, config), atol=1e-4)


def test_bfloat16_computation_stays_near_float32():
    config, spectrum = model(**LEAN), networks.spectrum(*SHAPE)
    variables = variables_of(config)
    exact = oracle.net(variables, spectrum, None, config)
    rough = jax.jit(SAFNet(config, dtype=jnp.bfloat16).apply)(variables, spectrum)
    assert rough.dtype == jnp.complex64
    error = np.abs(np.asarray(rough) - exact)
    assert 0 < error.max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layer"},
        {"norm": "group"},
        {"norm": "instance"},
        {"norm": "batch"},
        {"causal": True},
        {"layer_kind": "transformer"},
    ],
    ids=str,
)
def test_padding_and_company_change_nothing(changes):
    config = model(**{**LEAN, "streams": "magnitude_phase", **changes})
    variables, valid = variables_of(config), 9
    # The companion fills all frames; behind the signal lies what must not be seen.
    together = networks.spectrum(2, 16, 13)
    run = jax.jit(apply, static_argnums=0)
    alone = np.asarray(run(config, variables, together[:1, :valid], None))[0]
    in_company = np.asarray(run(config, variables, together, np.array([valid, 16], np.int32)))
    np.testing.assert_allclose(in_company[0, :valid], alone, atol=1e-5 * np.abs(alone).max())
    assert not in_company[0, valid:].any()
    unmasked = np.asarray(run(config, variables, together, np.array([16, 16], np.int32)))
    if not config.causal:
        assert np.abs(unmasked[0, :valid] - alone).max() > 1e-2 * np.abs(alone).max(), "this test shows nothing"


@pytest.mark.parametrize("causal", [True, False])
def test_context_is_exactly_what_gradients_show(causal):
    """No output frame depends on a frame outside the claimed context, and on both its ends it does depend.

    With `causal` this is the proof that nothing later is looked at.
    """
    config = model(causal=causal, norm="group", local_window=3)
    past, future = context_frames(config)
    frames, bands = past + future + 4, 6
    # dense 2 * (1 + 2), large kernel (5 - 1) / 2, TCN 1 + 2 frames to one side; twice that to the past if causal.
    assert (past, future) == ((22, 0) if causal else (11, 11))
    spectrum = networks.spectrum(1, frames, bands)
    variables = networks.random_variables(SAFNet(config), spectrum)
    weights = networks.spectrum(bands, seed=1)

    @jax.jit
    def influence(frame):
        def output(spectrum):
            chosen = jax.lax.dynamic_index_in_dim(apply(config, variables, spectrum)[0], frame, keepdims=False)
            return jnp.sum(jnp.real(chosen * weights))

        return jnp.abs(jax.grad(output)(spectrum))[0].max(axis=-1)

    for t in range(frames):
        seen = np.flatnonzero(np.asarray(influence(t)))
        assert seen[0] == max(0, t - past), f"output frame {t} sees back to {seen[0]}"
        assert seen[-1] == min(frames - 1, t + future), f"output frame {t} sees ahead to {seen[-1]}"


def test_gradients_are_finite_at_digital_silence():
    config = model(**LEAN)
    silence = jnp.zeros(SHAPE, jnp.complex64)

    def loss(params, spectrum):
        return jnp.sum(jnp.abs(apply(config, {"params": params}, spectrum, FRAMES) - 1) ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables_of(config)["params"], silence)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("shape", "frames", "message"),
    [
        ((9, 5), None, r"spectrum must be \[B, T, F\], not of shape \(9, 5\)"),
        ((1, 9, 5), (2,), r"frames must be \[B\] or \[B, T\]"),
        ((2, 9, 5), (2, 3), r"not of shape \(2, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shape, frames, message):
    model = SAFNet(networks.least().model)
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), np.zeros(shape, np.complex64), None if frames is None else np.ones(frames, int))


def test_the_papers_network_has_the_papers_size():
    config = saf_jax.load_config("paper")
    assert 575_000 <= count_costs(config)[0] <= 584_999
    assert config.model == Config().model
