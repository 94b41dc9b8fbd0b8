import dataclasses
import math

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import oracle
import pytest

import saf_jax
from saf_jax import enhancement, parallel
from saf_jax.enhancement import Enhancer, enhance_padded
from saf_jax.errors import UserError
from saf_jax.losses import weighted_sum
from saf_jax.model.cost import context_frames, count_costs, count_macs_per_second
from saf_jax.model.delay import network_delay
from saf_jax.model.net import SAFNet, variable_shapes
from saf_jax.model.transformer import TransformerLayer, attention, attention_bytes, sinusoids
from saf_jax.training_step import batch_terms, build_model, init_state

pytestmark = pytest.mark.usefixtures("quick_compile")

LEAN = {"layer_kind": "transformer", "feedforward_factor": 2, "dense_dilations": (1,)}
RATE = networks.STFT.sample_rate_hz


def features(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def enhancer():
    config = networks.least(**LEAN)
    return Enhancer(config, networks.net_variables(config))


@pytest.mark.parametrize("norm", ["layer", "batch", "group", "instance"])
def test_a_layer_equals_the_plain_one(norm):
    config, x = networks.model(norm=norm, **LEAN), features(3, 7, 5, 8)
    frames = np.array([7, 4, 1])
    mask = (np.arange(7) < frames[:, None])[..., None, None]
    layer = TransformerLayer(config)
    variables = networks.random_variables(layer, x, mask, False)
    out = jax.jit(lambda *given: layer.apply(variables, *given, False))(x, mask)
    wanted = oracle.transformer_layer(variables["params"], variables.get("batch_stats", {}), x, frames, config)
    np.testing.assert_allclose(out, wanted, atol=2e-5)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_attention_equals_a_loop_over_queries_and_heads(heads):
    query, key, value = (features(3, 2, 6, 8, seed=seed) for seed in range(3))
    frames = np.array([6, 3, 0])  # of the last signal there is nothing to attend to
    keys = (np.arange(6) < frames[:, None])[:, None]
    attend = jax.jit(attention, static_argnums=3)
    some = attend(query, key, value, heads, keys)
    np.testing.assert_allclose(some, oracle.attend_to_all(query, key, value, heads, frames), atol=1e-5)
    assert not np.asarray(some[2]).any()
    np.testing.assert_allclose(
        attend(query, key, value, heads, None), oracle.attend_to_all(query, key, value, heads), atol=1e-5
    )


def test_scores_of_any_size_and_rows_without_keys_have_finite_gradients():
    query, key, value = (features(2, 1, 5, 4, seed=seed) for seed in range(3))
    keys = np.array([[[True, True, True, False, False]], [[False] * 5]])

    def total(query, key, value):
        return jnp.sum(attention(1e4 * query, key, value, 2, keys) ** 2)

    value_and_gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(query, key, value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(value_and_gradients))
    of_key, of_value = value_and_gradients[1][1:]
    assert np.abs(of_value[0, :, :3]).max() > 0.1
    assert not np.asarray(of_key[0, :, 3:]).any() and not np.asarray(of_value[0, :, 3:]).any()
    assert not np.asarray(of_value[1]).any()


def test_bfloat16_takes_its_softmax_in_float32():
    """Scores of 128 and 128.25 are one number in bfloat16, and so are sums of many small weights."""
    query, key = np.zeros((2, 1, 1, 2, 4), np.float32)
    query[..., :2], key[..., 0], key[..., 1, 1] = (16, 1), 16, 0.5
    value = np.stack([np.zeros(4), np.ones(4)])[None, None]
    half = (jnp.asarray(x, jnp.bfloat16) for x in (query, key, value))
    out = jax.jit(attention, static_argnums=3)(*half, 1, None)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1 / (1 + math.exp(-0.25)), atol=0.004)
    value = jnp.full((1, 1, 2000, 4), 1.5, jnp.bfloat16)
    out = jax.jit(attention, static_argnums=3)(0 * value, value, value, 2, np.ones((1, 1, 2000), bool))
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.5, rtol=0.01)


def test_the_network_in_bfloat16_stays_near_float32():
    config, spectrum = networks.model(**LEAN), networks.spectrum(2, 9, 13)
    variables = networks.random_variables(SAFNet(config), spectrum)
    exact = oracle.net(variables, spectrum, None, config)
    rough = jax.jit(SAFNet(config, dtype=jnp.bfloat16).apply)(variables, spectrum)
    assert 0 < np.abs(np.asarray(rough) - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("channels", [7, 8])
def test_positions_are_all_different(channels):
    encoded = np.asarray(sinusoids(np.arange(300.0, dtype=np.float32)[:, None], channels))
    np.testing.assert_allclose(encoded, oracle.positions(300, 1, 2 * channels)[:, 0, :channels], atol=1e-4)
    distances = np.linalg.norm(encoded[:, None] - encoded, axis=-1) + 9 * np.eye(300)
    assert distances.min() > 0.01


def test_without_its_positions_the_network_would_not_tell_the_order_of_frames():
    """Frames in another order give another result, though the convolutions around see one frame at a time here."""
    config = networks.model(**{**LEAN, "dense_dilations": ()})
    spectrum, order = networks.spectrum(1, 6, 5), np.array([3, 1, 0, 5, 4, 2])
    variables = networks.random_variables(SAFNet(config), spectrum)
    apply = jax.jit(SAFNet(config).apply)
    turned = np.asarray(apply(variables, spectrum[:, order])) - np.asarray(apply(variables, spectrum))[:, order]
    assert np.abs(turned).max() > 0.01


def test_every_frame_depends_on_every_valid_frame_and_on_no_other():
    config, frames, valid = networks.model(**{**LEAN, "dense_dilations": ()}), 9, 6
    spectrum, weights = networks.spectrum(1, frames, 5), networks.spectrum(5, seed=1)
    variables = networks.random_variables(SAFNet(config), spectrum)

    def rows(spectrum):
        return jnp.real(SAFNet(config).apply(variables, spectrum, np.array([valid])) * weights).sum(-1)[0]

    real = jax.jit(jax.jacrev(lambda real: rows(real + 1j * spectrum.imag)))(spectrum.real)
    seen = np.abs(real)[:, 0].max(axis=-1) > 0  # [output frame, input frame]
    inside = np.arange(frames) < valid
    np.testing.assert_array_equal(seen, inside[:, None] & inside)


def test_what_stands_in_the_padding_changes_nothing():
    config, valid = networks.model(**LEAN), 6
    spectrum = networks.spectrum(2, 11, 13)
    variables = networks.random_variables(SAFNet(config), spectrum)
    apply = jax.jit(SAFNet(config).apply)
    alone = np.asarray(apply(variables, spectrum[:1, :valid], None))[0]
    for padding in (0, 1, 1000):
        padded = spectrum.copy()
        padded[0, valid:] *= padding
        together = np.asarray(apply(variables, padded, np.array([valid, 11], np.int32)))
        np.testing.assert_allclose(together[0, :valid], alone, atol=1e-5 * np.abs(alone).max())
        assert not together[0, valid:].any()
    nothing = np.asarray(apply(variables, spectrum, np.array([0, 11], np.int32)))
    assert np.isfinite(nothing).all() and not nothing[0].any()


def test_remat_changes_nothing():
    config, spectrum = networks.least(**LEAN).model, networks.spectrum(1, 5, 5)
    variables = networks.random_variables(SAFNet(config), spectrum)

    def gradient(remat):
        def loss(variables):
            return jnp.sum(jnp.abs(SAFNet(config, remat=remat).apply(variables, spectrum)) ** 2)

        return jax.jit(jax.grad(loss))(variables)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient(True), gradient(False))


@pytest.mark.parametrize("name", ["transformer", "transformer_deep"])
def test_the_configs_are_the_papers_network_with_other_layers(name):
    paper, config = saf_jax.load_config("paper"), saf_jax.load_config(name)
    own = dict(layer_kind="transformer", layers=config.model.layers, feedforward_factor=config.model.feedforward_factor)
    assert config == dataclasses.replace(paper, model=dataclasses.replace(paper.model, **own))
    parameters = count_costs(config)[0]
    if name == "transformer":
        assert 575_000 <= parameters <= 589_000
    else:
        assert config.model.layers == paper.model.layers
    header = (saf_jax.config.config_folder() / f"{name}.yaml").read_text()
    assert f"{parameters:,} parameters" in header
    assert f"{count_macs_per_second(config) / 1e9:.2f} GMAC per second of audio in a signal of 1 s" in header


def test_costs_of_a_layer_counted_by_hand():
    """Width 8, 17 bands folded to 9, feed-forward 2."""
    config = networks.config(**LEAN)
    with_two = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=2))
    (p1, m1), (p2, m2) = count_costs(config, 10), count_costs(with_two, 10)
    attention_parameters = 2 * 8 + 3 * (8 * 8 + 8) + 8 * 8  # norm; three 1x1 with bias, the keys' without
    assert p2 - p1 == 2 * attention_parameters + 2 * 8 + (8 * 16 + 16) + (16 * 8 + 8)
    assert m2 - m1 == 10 * 9 * (2 * 4 * 8 * 8 + 2 * 8 * (10 + 9) + 2 * 8 * 16)
    assert count_macs_per_second(config, 10) - count_macs_per_second(config, 5) == 100 * 9 * 2 * 8 * 500
    saf = networks.config()
    assert count_macs_per_second(saf, 10) == count_macs_per_second(saf)


def test_it_sees_the_whole_signal_and_has_no_past():
    config = networks.model(**LEAN)
    assert context_frames(config) == (math.inf, math.inf) and network_delay(config) == math.inf
    assert set(variable_shapes(config, 17)) == {"params"}
    spectrum = networks.spectrum(1, 4, 17)
    variables = networks.random_variables(SAFNet(config), spectrum)
    with pytest.raises(UserError, match=r"model\.layer_kind=transformer .*take a network with model\.layer_kind=saf"):
        SAFNet(config).apply(variables, spectrum, mutable=["past"])


def test_nothing_streams(enhancer):
    with pytest.raises(UserError, match="cannot stream: take a causal one") as error:
        saf_jax.stream(enhancer.config, enhancer.variables)
    assert "\n" not in str(error.value)
    for call in (
        lambda: saf_jax.streaming.start(enhancer.config, 1, [1.0]),
        lambda: enhancement.streaming.delay_samples(enhancer.config),
    ):
        with pytest.raises(UserError, match=r"cannot take it in pieces"):
            call()


def whole(enhancer, samples):
    """In one pass, without padding."""
    length = np.array([len(samples)], np.int32)
    return np.asarray(enhance_padded(enhancer.config, enhancer.variables, samples[None], length))[0]


@pytest.mark.parametrize("seconds", [1.0, 3.3])
def test_a_signal_is_enhanced_whole_whatever_it_is_padded_to(enhancer, seconds, monkeypatch):
    samples = networks.tone_in_noise(round(seconds * RATE))
    samples[: len(samples) // 4] *= 1e-2  # what comes later is heard by what came before
    wanted = whole(enhancer, samples)
    assert np.abs(wanted).max() > 0.05
    for enhanced in (
        Enhancer(enhancer.config, enhancer.variables)(samples, RATE),
        saf_jax.enhance(enhancer.config, enhancer.variables, samples, RATE),
        enhancer.many([networks.tone_in_noise(50), samples], RATE)[1],
    ):
        np.testing.assert_allclose(enhanced, wanted, atol=1e-5)
    monkeypatch.setattr(enhancement, "BUCKET_SECONDS", (5.0,))
    np.testing.assert_allclose(Enhancer(enhancer.config, enhancer.variables)(samples, RATE), wanted, atol=1e-5)
    # In halves it would be another one: this is what must not happen.
    halves = np.concatenate([whole(enhancer, half) for half in np.array_split(samples, 2)])
    assert np.abs(halves - wanted).max() > 1e-3


def test_a_long_recording_in_pieces_is_enhanced_whole(enhancer):
    samples = networks.tone_in_noise(21 * RATE + 7)  # longer than the last of the fixed lengths
    level = enhancer.level(samples, RATE)
    pieces = np.split(np.stack([samples, np.zeros_like(samples)]), [0, 1000, 1001, 20000], axis=1)
    out = np.concatenate(list(enhancer.blocks(iter(pieces), level)), axis=1)
    np.testing.assert_allclose(out[0], whole(enhancer, samples), atol=1e-5)
    assert not out[1].any()
    assert list(enhancer.blocks([], 0.1)) == []


def test_what_memory_cannot_hold_is_refused_before_any_work(enhancer, monkeypatch):
    config = enhancer.config
    allowed = attention_bytes(config.model, config.stft.bins, config.stft.frames(30 * RATE)) / 1e9
    monkeypatch.setattr(parallel, "memory_limit_gb", lambda: 1.001 * allowed / enhancement.MEMORY_SHARE)
    monkeypatch.setattr(enhancement, "enhance_padded", pytest.fail)
    enhancer.check_seconds(30)
    message = r"^a signal of 30\.1 s: model\.layer_kind=transformer .*: cut it into parts of at most 30 s here, or take"
    long = np.ones(round(30.1 * RATE), np.float32)
    with pytest.raises(UserError, match=message):
        enhancer.many([long[:100], long], RATE)
    given = iter([long[None]] * 100)
    with pytest.raises(UserError, match=message):
        next(enhancer.blocks(given, 0.1))
    assert len(list(given)) == 99
    monkeypatch.setattr(parallel, "memory_limit_gb", lambda: None)
    enhancer.check_seconds(1e5)


def test_one_program_for_all_lengths_of_a_bucket(enhancer):
    enhancer(networks.tone_in_noise(2500), RATE)
    before = set(enhancer._compiled)
    for length in (2401, 3000, 4000):
        assert len(enhancer(networks.tone_in_noise(length), RATE)) == length
    assert enhancer._compiled == before


def test_training_lowers_the_loss_and_moves_every_part():
    config = networks.least(**LEAN)
    clean = np.stack([networks.tone_in_noise(400, seed) for seed in range(4)])
    # An empty signal among them, of which nothing can be attended to.
    samples = np.array([400, 400, 100, 0], np.int32)
    clean *= np.arange(400) < samples[:, None]
    batch = {"noisy": clean + 0.2 * features(4, 400), "clean": clean, "samples": samples}
    model, state, optimizer = build_model(config), init_state(config), optax.adam(0.01)

    @jax.jit
    def step(params, moments):
        def loss(params):
            return weighted_sum(batch_terms(config, model, {"params": params}, batch, train=True)[0], config.loss)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments, value

    params, moments, losses = state.params, optimizer.init(state.params), []
    for _ in range(30):
        params, moments, value = step(params, moments)
        losses.append(float(value))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params["layer_0"], params["layer_0"])
    assert min(jax.tree.leaves(moved)) > 0.01, moved
