import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from saf_jax import parallel
from saf_jax.config import DataConfig, DiscriminatorConfig, LossConfig, TrainConfig
from saf_jax.discriminator_step import judge, metric_error
from saf_jax.errors import UserError
from saf_jax.training_step import batch_signals, build_model, build_train_step, init_state

pytestmark = pytest.mark.usefixtures("quick_compile")

DELAY, SIZE = 2, 500
CONFIG = dataclasses.replace(
    networks.least(),
    data=DataConfig(crop_seconds=SIZE / networks.STFT.sample_rate_hz),
    loss=LossConfig(metric=0.1),
    discriminator=DiscriminatorConfig(width=4, learning_rate=1e-2, label_delay_steps=DELAY),
    train=TrainConfig(batch_size=16, schedule="constant"),
)
SAMPLES = np.array([500, 460, 17, 40, 333, 500, 0, 250] * 2, np.int32)
NOTHING = np.full(16, np.nan, np.float32)


def make_batch(seed, labels):
    inside = np.arange(SIZE) < SAMPLES[:, None]
    noisy, clean = (
        np.stack([networks.tone_in_noise(SIZE, seed + 50 * kind + i) for i in range(16)]) * inside for kind in range(2)
    )
    signals = {"noisy": noisy, "clean": 0.5 * clean}
    return {**{name: x.astype(np.float32) for name, x in signals.items()}, "samples": SAMPLES, "labels": labels}


@pytest.fixture(scope="module")
def train_step():
    step = parallel.map_over_devices(build_train_step(CONFIG))
    return lambda state, batch: jax.device_get(step(parallel.put_state(state), parallel.put_batch(batch)))


@pytest.fixture(scope="module")
def fresh():
    return jax.device_get(jax.jit(lambda: init_state(CONFIG))())


def unequal(a, b):
    return any(np.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.ci
def test_it_learns_on_eight_devices_from_the_batch_that_the_labels_belong_to(train_step, fresh):
    first, _ = train_step(fresh, make_batch(0, NOTHING))
    second, result = train_step(first, make_batch(1000, NOTHING))
    assert not unequal(second.discriminator.params, fresh.discriminator.params)
    assert float(result["discriminator"]) == 0
    labels = np.where(np.arange(16) % 3 == 1, np.nan, np.linspace(0, 1, 16)).astype(np.float32)
    known = np.flatnonzero(~np.isnan(labels))
    third, result = train_step(second, make_batch(2000, labels))

    @jax.jit
    def of_first_batch():
        signals, _ = batch_signals(CONFIG, build_model(CONFIG), fresh.variables, make_batch(0, NOTHING), train=False)
        return signals.estimated_samples, signals.target_samples

    # From here on the stored signals: how the network rounds differs between processors and is no matter of this test.
    pairs = second.discriminator.estimates[0], second.discriminator.targets[0]
    for got, want in zip(pairs, of_first_batch(), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)

    # Adam's first step on one device.
    @jax.jit
    @jax.value_and_grad
    def wanted(params):
        of_estimate = judge(CONFIG, params, *pairs, SAMPLES)[known]
        of_target = judge(CONFIG, params, pairs[1], pairs[1], SAMPLES)[known]
        return jnp.mean((of_estimate - labels[known]) ** 2 + (of_target - 1) ** 2)

    loss, gradient = wanted(fresh.discriminator.params)
    assert float(result["discriminator"]) == pytest.approx(float(loss), rel=1e-4)
    moments = third.discriminator.optimizer.mu
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for got, want in zip(jax.tree.leaves(moments), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(got / 0.1, want, atol=1e-4 * largest)
    assert unequal(third.discriminator.params, second.discriminator.params)

    assert float(result["metric"]) > 0
    np.testing.assert_array_equal(result["judged"]["samples"], SAMPLES)
    np.testing.assert_array_equal(result["judged"]["estimate"], third.discriminator.estimates[0])


def test_its_verdict_moves_the_network(fresh):
    """The gradient of its score reaches the network's parameters, and is one."""
    batch = make_batch(0, NOTHING)

    @jax.jit
    def verdict(params):
        variables = fresh.replace(params=params).variables
        signals, _ = batch_signals(CONFIG, build_model(CONFIG), variables, batch, train=False)
        total, count = metric_error(CONFIG, fresh.discriminator.params, signals)
        return total / count

    # A fresh network's zeros put its activations on their corners.
    start = networks.net_variables(CONFIG)["params"]
    gradient = jax.jit(jax.grad(verdict))(start)
    size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    assert float(size) > 1e-3
    above, below = (
        float(verdict(jax.tree.map(lambda leaf, way, step=step: leaf + step * way / size, start, gradient)))
        for step in (1e-4, -1e-4)
    )
    assert above - below == pytest.approx(2e-4 * float(size), rel=0.1)


def test_a_bad_batch_leaves_no_trace_in_the_discriminator(train_step, fresh):
    bad = make_batch(0, NOTHING)
    bad["noisy"][3] = np.nan
    state, result = train_step(fresh, bad)
    assert not result["usable"]
    state, _ = train_step(state, make_batch(100, NOTHING))
    labels = np.full(16, 0.5, np.float32)
    labels[3] = np.nan
    state, result = train_step(state, make_batch(200, labels))
    assert np.isfinite(result["discriminator"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.discriminator.params))
    assert unequal(state.discriminator.params, fresh.discriminator.params)


def test_without_weight_there_is_no_discriminator():
    config = dataclasses.replace(CONFIG, loss=LossConfig())
    assert jax.eval_shape(lambda: init_state(config)).discriminator == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_delay_steps": 1}, "label_delay_steps=1: must be at least 2"),
        ({"learning_rate": 0.0}, "must be positive"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, discriminator=DiscriminatorConfig(**settings)).check()
