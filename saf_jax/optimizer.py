"""The optimiser, the schedule of its learning rate, and the average of the weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from saf_jax.config import Config


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """Clipping, the direction of Adam or Muon and decoupled weight decay; the learning rate is applied in the step.

    Muon's steps are as long as Adam's (root mean square 0.2 over a matrix), so that the rates of both are alike.

    References:
      Adam: arXiv 1412.6980; AdamW: arXiv 1711.05101, algorithm 2; Muon: arXiv 2502.16982, equation 4.
    """
    train = config.train
    if train.optimizer == "muon":
        direction = optax.chain(
            contrib.muon(
                1.0,
                beta=train.beta1,
                consistent_rms=0.2,
                adam_b1=train.beta1,
                adam_b2=train.beta2,
                muon_weight_dimension_numbers=_matrices,
            ),
            optax.scale(-1.0),
        )
    else:
        direction = optax.scale_by_adam(b1=train.beta1, b2=train.beta2)
    clip = [optax.clip_by_global_norm(train.gradient_clip)] if train.gradient_clip else []
    decay = [optax.add_decayed_weights(train.weight_decay)] if train.weight_decay else []
    return optax.chain(*clip, direction, *decay)


def _matrices(params: Any) -> Any:
    """Which leaves Muon moves: maps between channels; not those that read the spectra or write the masks."""

    def is_matrix(leaf: Any) -> Any:
        return contrib.MuonDimensionNumbers() if leaf.ndim == 2 and min(leaf.shape) > 2 else None

    return jax.tree.map(is_matrix, params)


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
