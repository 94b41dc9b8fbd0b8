"""The optimiser, the schedule of its learning rate, and the average of the weights."""

import math
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


def learning_rate(config: Config, step: int, steps_per_epoch: int, done: float) -> float:
    """Scheduled learning rate at a step (the first is 0), before the plateau factor.

    Args:
      config: `train` names the schedule.
      step: steps done before.
      steps_per_epoch: for the schedule "exponential".
      done: part of the training that is done, 0 to 1, for the schedule "cosine".
    """
    train = config.train
    rate = train.learning_rate
    if train.warmup_steps:
        rate *= min(1.0, (step + 1) / train.warmup_steps)
    if train.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
    if train.schedule == "exponential":
        rate *= train.epoch_decay ** (step // steps_per_epoch)
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
