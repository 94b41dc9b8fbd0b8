import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saf_jax.config import Config, TrainConfig
from saf_jax.optimizer import build_optimizer, learning_rate
from saf_jax.training_span import TrainingSpan


def test_clipping_limits_the_global_norm_before_adam():
    config = Config(train=TrainConfig(gradient_clip=5.0))
    params = {"a": jnp.zeros(3), "b": jnp.zeros(1)}
    for length in (100.0, 2.0):
        gradient = {"a": jnp.array([0.0, 0.6, 0.0]) * length, "b": jnp.array([0.8]) * length}
        _, state = build_optimizer(config).update(gradient, build_optimizer(config).init(params), params)
        (adam,) = [part for part in state if hasattr(part, "mu")]
        np.testing.assert_allclose(adam.mu["b"], (1 - 0.95) * 0.8 * min(length, 5.0), rtol=1e-5)
        np.testing.assert_allclose(adam.nu["b"], (1 - 0.999) * (0.8 * min(length, 5.0)) ** 2, rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 8), (8, 32), (16, 16)])
def test_muon_moves_all_singular_directions_alike(shape):
    # The gradient's singular directions, whose values differ by 1 : 100, all get about the same value.
    left, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((shape[0], 8)))
    right, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((shape[1], 8)))
    values = np.geomspace(0.01, 1, 8)
    gradient = {"kernel": jnp.asarray((left * values) @ right.T, jnp.float32)}
    optimizer = build_optimizer(Config(train=TrainConfig(optimizer="muon")))
    update, _ = jax.jit(optimizer.update)(gradient, optimizer.init(gradient), gradient)
    along = left.T @ np.asarray(update["kernel"]) @ right / (0.2 * max(shape) ** 0.5)
    assert np.all((np.diag(along) > 0.65) & (np.diag(along) < 1.25))
    np.testing.assert_allclose(along - np.diag(np.diag(along)), 0, atol=1e-3)


def test_muon_leaves_all_but_maps_between_channels_to_adam():
    shapes = {"bias": (16,), "depthwise": (3, 3, 16), "from_spectra": (2, 16), "to_mask": (16, 1), "map": (16, 16)}
    random = np.random.default_rng(0)
    gradients = [{n: jnp.asarray(random.standard_normal(s), jnp.float32) for n, s in shapes.items()} for _ in range(3)]
    train = TrainConfig(optimizer="muon", beta1=0.9, beta2=0.99, gradient_clip=0.0)
    found, wanted = build_optimizer(Config(train=train)), optax.scale_by_adam(0.9, 0.99, nesterov=True)
    states = found.init(gradients[0]), wanted.init(gradients[0])
    for gradient in gradients:
        update, first = found.update(gradient, states[0], gradient)
        adam, second = wanted.update(gradient, states[1])
        states = first, second
    for name in shapes:
        same = np.allclose(update[name], adam[name], rtol=1e-5)
        assert same == (name != "map"), name
    assert float(jnp.vdot(update["map"], gradients[-1]["map"])) > 0


def test_muon_moves_each_matrix_as_if_it_were_alone():
    shapes = {
        "b": {"last": (8, 8), "bias": (8,), "wide": (8, 16)},
        "a": {"first": (8, 8), "wide": (8, 16)},
        "tall": (16, 8),
    }
    random = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    optimizer = build_optimizer(Config(train=TrainConfig(optimizer="muon", gradient_clip=0.0)))

    def updated(gradients):
        return optimizer.update(gradients, optimizer.init(gradients), gradients)[0]

    together = updated(gradients)
    assert jax.tree.structure(together) == jax.tree.structure(gradients)
    for update, gradient in zip(jax.tree.leaves(together), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(update, updated({"alone": gradient})["alone"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({"schedule": "constant"}, 0, 1.0),
        ({"schedule": "plateau"}, 90, 1.0),
        ({"schedule": "constant", "warmup_steps": 10}, 0, 0.1),
        ({"schedule": "constant", "warmup_steps": 10}, 9, 1.0),
        ({"schedule": "constant", "warmup_steps": 10}, 50, 1.0),
        ({"schedule": "cosine"}, 0, 1.0),
        ({"schedule": "cosine"}, 50, 0.5),
        ({"schedule": "cosine"}, 100, 0.0),
        ({"schedule": "cosine"}, 1000, 0.0),
        ({"schedule": "cosine", "warmup_steps": 20}, 20, 1.0),
        ({"schedule": "cosine", "warmup_steps": 20}, 60, 0.5),
        ({"schedule": "exponential", "epoch_decay": 0.5}, 39, 1.0),
        ({"schedule": "exponential", "epoch_decay": 0.5}, 40, 0.5),
        ({"schedule": "exponential", "epoch_decay": 0.5, "warmup_steps": 200}, 99, 0.125),
    ],
    ids=str,
)
def test_learning_rate(settings, step, expected):
    config = Config(train=TrainConfig(learning_rate=0.01, **settings))
    done = TrainingSpan(config.train, total_steps=100).done(step)
    assert learning_rate(config, step, 40, done) == pytest.approx(0.01 * expected, abs=1e-8)
