import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from saf_jax import parallel
from saf_jax.config import LossConfig, TrainConfig
from saf_jax.errors import UserError
from saf_jax.losses import weighted_sum
from saf_jax.model.net import SAFNet
from saf_jax.optimizer import average_weights
from saf_jax.training_step import (
    batch_terms,
    build_model,
    build_train_step,
    build_validation_step,
    init_state,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

# Batch norm, since it is what could differ between devices; no clipping, so that Adam's moment tells the gradient.
CONFIG = dataclasses.replace(
    networks.config(norm="batch", attention_kernel=3, dense_dilations=(2,), tcn_dilations=(1,)),
    train=TrainConfig(batch_size=8, gradient_clip=0.0, warmup_steps=10),
    loss=LossConfig(complex=0.7, magnitude=0.3),
)
RATE = 2.5e-4
SAMPLES = np.array([500, 460, 17, 40, 333, 500, 0, 250], np.int32)


def make_batch(seed=0):
    """Eight signals of unequal lengths, one of them empty."""
    inside = np.arange(500) < SAMPLES[:, None]
    noisy, clean = (
        np.stack([networks.tone_in_noise(500, seed + 10 * kind + i) for i in range(8)]) * inside for kind in range(2)
    )
    return {"noisy": noisy.astype(np.float32), "clean": (0.5 * clean).astype(np.float32), "samples": SAMPLES}


def make_state(config=CONFIG):
    state = init_state(config, networks.net_variables(config))
    return state.replace(step=np.int32(4), learning_rate_scale=np.float32(0.5))


@pytest.fixture(scope="module")
def train_step():
    """One compiled step on all eight devices, as training runs it."""
    step = parallel.map_over_devices(build_train_step(CONFIG), donate_state=True)

    def run(state, batch):
        batch = parallel.split_batch(batch) | {"learning_rate": parallel.put_scalar(RATE)}
        return step(jax.tree.map(jnp.array, state), batch)

    return run


@pytest.fixture(scope="module")
def plain():
    """Loss, gradient and new averages of the whole batch on one device, without any mapping."""

    def loss_of(params, batch):
        variables = make_state().replace(params=params).variables
        terms, averages = batch_terms(CONFIG, SAFNet(CONFIG.model), variables, batch, train=True)
        return weighted_sum(terms, CONFIG.loss), (averages, terms)

    return jax.jit(jax.value_and_grad(loss_of, has_aux=True))(make_state().params, make_batch())


def largest(leaf):
    return np.abs(np.asarray(leaf)).max()


def assert_close(got, wanted, tolerance):
    """Each array agrees to a part of its largest value."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        assert a.shape == np.shape(b)
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * largest(b), jax.tree_util.keystr(path)


def moments(state):
    (adam,) = [part for part in state.optimizer if hasattr(part, "mu")]
    return adam


def test_there_are_eight_devices():
    assert jax.device_count() == 8


def test_eight_devices_agree_with_one(train_step, plain):
    """The raw gradient, which Adam's division would hide a factor in, then what becomes of it."""
    (loss, (averages, terms)), gradient = plain
    before = make_state()
    state, result = train_step(before, make_batch())
    beta1, beta2 = CONFIG.train.beta1, CONFIG.train.beta2
    raw = jax.tree.map(lambda leaf: leaf / (1 - beta1), moments(state).mu)
    scale = max(largest(leaf) for leaf in jax.tree.leaves(gradient))
    for (path, got), wanted in zip(jax.tree_util.tree_leaves_with_path(raw), jax.tree.leaves(gradient), strict=True):
        # What batch norm takes away again has no gradient but rounding noise.
        tolerance = 1e-5 * largest(wanted) + 1e-7 * scale
        assert np.abs(np.asarray(got) - np.asarray(wanted)).max() <= tolerance, jax.tree_util.keystr(path)
    assert_close(state.batch_stats, averages, 1e-5)

    assert float(result["loss"]) == pytest.approx(float(loss), rel=1e-5)
    for name, term in terms.items():
        assert float(result[name]) == pytest.approx(float(term.total / term.count), rel=1e-5)
    norm = np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(gradient)))
    assert float(result["gradient_norm"]) == pytest.approx(norm, rel=1e-5)

    # Adam's first step, the scheduled rate halved once.
    rate = RATE * 0.5
    assert float(result["learning_rate"]) == pytest.approx(rate)
    mu, nu = moments(state).mu, moments(state).nu
    wanted = jax.tree.map(
        lambda p, m, v: p - rate * (m / (1 - beta1)) / (np.sqrt(v / (1 - beta2)) + 1e-8), before.params, mu, nu
    )
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert (int(state.step), int(state.skipped), bool(result["usable"])) == (5, 0, True)


def test_the_result_does_not_depend_on_how_the_batch_is_spread(train_step):
    order = np.array([7, 2, 6, 0, 3, 5, 1, 4])
    batch = make_batch()
    first, result = train_step(make_state(), batch)
    second, other = train_step(make_state(), {name: values[order] for name, values in batch.items()})
    assert float(other["loss"]) == pytest.approx(float(result["loss"]), rel=1e-6)
    assert_close(second.batch_stats, first.batch_stats, 1e-5)


def test_what_lies_beyond_the_end_has_no_part(train_step):
    batch = make_batch()
    # The last valid frame reaches a window beyond the end.
    beyond = np.arange(500) >= SAMPLES[:, None] + CONFIG.stft.window_samples
    changed = {**batch, "clean": np.where(beyond, 0.3, batch["clean"]).astype(np.float32)}
    _, result = train_step(make_state(), batch)
    _, other = train_step(make_state(), changed)
    assert float(other["loss"]) == pytest.approx(float(result["loss"]), rel=1e-6)


@pytest.mark.parametrize("name", ["noisy", "clean"])
def test_a_batch_with_nan_changes_nothing_but_the_counters(train_step, name):
    batch = make_batch()
    batch[name] = batch[name].copy()
    batch[name][5, 100] = np.nan
    before = make_state()
    state, result = train_step(before, batch)
    assert not bool(result["usable"])
    for part in ("params", "batch_stats", "optimizer", "learning_rate_scale"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(before, part))
    assert (int(state.step), int(state.skipped)) == (5, 1)


def test_parts_of_a_batch_sum_to_the_whole():
    """Two devices take eight signals of unequal lengths whole, and in parts; not with batch norm, which differs."""
    base = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, norm="layer"))
    found = []
    for accumulate in (1, 4):
        config = dataclasses.replace(base, train=dataclasses.replace(CONFIG.train, accumulate=accumulate))
        step = parallel.map_over_devices(build_train_step(config))
        batch = {name: values.reshape(2, 4, *values.shape[1:]) for name, values in make_batch().items()}
        found.append(step(make_state(config), batch))
    (whole, result), (parts, other) = found
    assert_close(moments(parts).mu, moments(whole).mu, 1e-5)
    for name in ("loss", "complex", "magnitude", "gradient_norm"):
        assert float(other[name]) == pytest.approx(float(result[name]), rel=1e-5)


def test_the_average_of_the_weights_follows_them_and_is_what_is_used():
    decay, step = 0.3, 5
    average, params = {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, 2.0])}
    np.testing.assert_allclose(average_weights(average, params, step, decay)["a"], [2.4, 2.0], rtol=1e-6)
    # Early steps count for more: here 6 / 15 instead of 0.999.
    np.testing.assert_allclose(average_weights(average, params, step, 0.999)["a"], [2.2, 2.0], rtol=1e-6)
    config = networks.least()
    config = dataclasses.replace(config, train=TrainConfig(average_decay=0.999))
    state = init_state(config, networks.net_variables(config))
    moved = state.replace(average=jax.tree.map(lambda leaf: leaf + 1, state.average))
    assert_close(moved.best_variables["params"], moved.average, 0)
    assert_close(moved.variables["params"], state.params, 0)
    assert init_state(networks.least(), networks.net_variables(config)).average == {}


def test_steps_move_the_average_and_decay_the_weights():
    """One part of a step's program at a time would be clearer, but compiling is what costs."""
    settings = {"average_decay": 0.5, "weight_decay": 0.1, "remat": True, "precision": "bfloat16"}
    base = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, norm="layer"))
    changed = dataclasses.replace(base, train=dataclasses.replace(CONFIG.train, **settings))
    results = {}
    for config in (base, changed):
        step = parallel.map_over_devices(build_train_step(config))
        results[config] = step(make_state(config), parallel.split_batch(make_batch()))
    (_, plain_result), (state, result) = results[base], results[changed]
    before = make_state(changed)
    # Compute in bfloat16 rounds to 3 digits; what is kept is float32 and not rounded.
    assert float(result["loss"]) != float(plain_result["loss"])
    assert float(result["loss"]) == pytest.approx(float(plain_result["loss"]), rel=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.average, moments(state)))} >= {
        jnp.dtype("float32")
    }
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.bfloat16]
    rate, beta1, beta2 = float(result["learning_rate"]), CONFIG.train.beta1, CONFIG.train.beta2
    for got, average, old, m, v in zip(
        *(jax.tree.leaves(tree) for tree in (state.params, state.average, before.params)),
        *(jax.tree.leaves(tree) for tree in (moments(state).mu, moments(state).nu)),
        strict=True,
    ):
        direction = (m / (1 - beta1)) / (np.sqrt(v / (1 - beta2)) + 1e-8)
        np.testing.assert_allclose(got, old - rate * (direction + 0.1 * old), atol=1e-6)
        # At step 4 the decay is 5 / 14.
        np.testing.assert_allclose(average, old + 9 / 14 * (got - old), atol=1e-6)


def test_an_exploding_gradient_is_left_out_once_the_usual_is_known(train_step):
    batch = make_batch()
    _, usual = train_step(make_state(), batch)
    norm = float(usual["gradient_norm"])
    for steps, usual_norm, usable in ((150, norm, True), (150, norm / 101, False), (50, norm / 101, True)):
        before = make_state().replace(step=np.int32(steps), usual_norm=np.float32(usual_norm))
        state, result = train_step(before, batch)
        assert bool(result["usable"]) is usable
        assert int(state.skipped) == (not usable)
        if usable:
            assert float(state.usual_norm) == pytest.approx(0.99 * usual_norm + 0.01 * norm, rel=1e-5)
        else:
            jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
            assert float(state.usual_norm) == np.float32(usual_norm)


def test_validation_sums_over_all_devices():
    step = parallel.map_over_devices(build_validation_step(CONFIG))
    state, batch = make_state(), make_batch()
    _, terms = step(state, parallel.split_batch(batch))
    wanted, averages = jax.jit(lambda: batch_terms(CONFIG, build_model(CONFIG), state.variables, batch, train=False))()
    assert set(terms) == {"complex", "magnitude"}
    assert_close(terms, wanted, 1e-5)
    frames = sum(CONFIG.stft.frames(int(n)) for n in SAMPLES if n)
    assert {float(term.count) for term in terms.values()} == {frames * CONFIG.stft.bins}
    jax.tree.map(np.testing.assert_array_equal, averages, state.batch_stats)


def test_a_frozen_norm_trains_what_inference_computes():
    config = dataclasses.replace(
        CONFIG,
        model=networks.least(norm="batch").model,
        train=dataclasses.replace(CONFIG.train, freeze_norm=True, init_from="some"),
    )
    before, batch = make_state(config), make_batch()

    @jax.jit
    def inference_loss(params):
        terms, _ = batch_terms(config, build_model(config), before.replace(params=params).variables, batch, train=False)
        return weighted_sum(terms, config.loss)

    loss, gradient = jax.value_and_grad(inference_loss)(before.params)
    state, result = parallel.map_over_devices(build_train_step(config))(before, parallel.split_batch(batch))
    assert float(result["loss"]) == pytest.approx(float(loss), rel=1e-5)
    raw = jax.tree.map(lambda leaf: leaf / (1 - config.train.beta1), moments(state).mu)
    assert_close(raw, gradient, 1e-4)
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, before.batch_stats)


def test_a_new_state_follows_from_the_seed_alone():
    config = dataclasses.replace(networks.least(norm="batch", layers=0), train=TrainConfig(seed=3))
    make = jax.jit(init_state, static_argnums=0)
    first, other = make(config), make(dataclasses.replace(config, train=TrainConfig(seed=4)))
    again = jax.jit(lambda: init_state(config))()
    assert_close(again.params, first.params, 1e-6)
    kernel = first.params["encoder_complex"]["expand"]["kernel"]
    assert np.abs(kernel - other.params["encoder_complex"]["expand"]["kernel"]).max() > 0.01
    assert set(first.variables) == {"params", "batch_stats"}
    assert (int(first.step), int(first.skipped), float(first.learning_rate_scale)) == (0, 0, 1.0)
    layer_norm = jax.eval_shape(lambda: init_state(networks.least()))
    assert set(layer_norm.variables) == {"params"}


@pytest.mark.parametrize("without_cpu", [False, True])
def test_weights_are_drawn_on_the_host_where_jax_has_one(monkeypatch, without_cpu):
    def none_there(backend=None):
        raise RuntimeError(f"unknown backend {backend}")

    if without_cpu:
        monkeypatch.setattr(jax, "local_devices", none_there)
    found = parallel.on_host(lambda: {"weight": jnp.arange(3)})
    np.testing.assert_array_equal(found["weight"], [0, 1, 2])
    assert {device.platform for device in found["weight"].devices()} == {"cpu"}


def test_precision_and_batch_norm_are_settings_of_training_only():
    config = dataclasses.replace(CONFIG, train=TrainConfig(precision="bfloat16"))
    assert build_model(config, training=True).dtype == jnp.bfloat16
    assert build_model(config, training=True).axis_name == parallel.DEVICES
    assert build_model(config) == SAFNet(config.model)
    assert build_model(CONFIG, training=True).dtype == jnp.float32


@pytest.mark.parametrize(
    ("size", "message"), [(4, "the 8 devices cannot share it evenly: use 8"), (12, "use 8 or 16"), (1, "use 8")]
)
def test_a_batch_that_the_devices_cannot_share(size, message):
    with pytest.raises(UserError, match=rf"train\.batch_size={size}: .*{message}"):
        parallel.check_batch_size(size)
    parallel.check_batch_size(16)


def test_a_batch_that_processes_or_parts_cannot_share(monkeypatch):
    with pytest.raises(UserError, match=r"8 devices cannot share it evenly in 2 parts each .*: use 16 or 32"):
        parallel.check_batch_size(24, accumulate=2)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="the 8 devices of 2 processes cannot share it evenly: use 8 or 16"):
        parallel.check_batch_size(12)


def test_splitting_a_batch_keeps_its_order():
    parts = parallel.split_batch({"a": np.arange(32).reshape(16, 2)})["a"]
    assert parts.shape == (8, 2, 2)
    np.testing.assert_array_equal(parts.reshape(16, 2), np.arange(32).reshape(16, 2))


def test_what_is_known_of_devices_and_processes():
    assert parallel.describe_devices() == "8 x cpu"
    assert (parallel.process_index(), parallel.process_count(), parallel.is_main_process()) == (0, 1, True)
