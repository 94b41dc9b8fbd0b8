"""The optimiser, the schedule of its learning rate, and the average of the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from saf_jax.config import Config


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """Clipping, Adam's direction and decoupled weight decay; the learning rate is applied in the step.

    References:
      Adam: arXiv 1412.6980; AdamW: arXiv 1711.05101, algorithm 2.
    """
    train = config.train
    clip = [optax.clip_by_global_norm(train.gradient_clip)] if train.gradient_clip else []
    decay = [optax.add_decayed_weights(train.weight_decay)] if train.weight_decay else []
    return optax.chain(*clip, optax.scale_by_adam(b1=train.beta1, b2=train.beta2), *decay)


def learning_rate(config: Config, step: jax.Array, total_steps: int, steps_per_epoch: int) -> jax.Array:
    """Scheduled learning rate at a step (the first is 0), before the plateau factor."""
    train = config.train
    rate = jnp.asarray(train.learning_rate, jnp.float32)
    if train.warmup_steps:
        rate = rate * jnp.minimum(1.0, (step + 1) / train.warmup_steps)
    if train.schedule == "cosine":
        done = (step - train.warmup_steps) / max(1, total_steps - train.warmup_steps)
        rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
    if train.schedule == "exponential":
        rate = rate * train.epoch_decay ** (step // steps_per_epoch).astype(jnp.float32)
    return rate


def average_weights(average: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """Moves an exponential moving average of the weights on by one step.

    The first steps count for more, so that the average does not hang on to the initial weights.

    Args:
      average, params: trees of the same structure.
      step: int32, steps done before.
      decay: of the average, once it is warm.
    """
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, params)
