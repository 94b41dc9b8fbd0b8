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
    direction = (_muon if train.optimizer == "muon" else optax.scale_by_adam)(train.beta1, train.beta2)
    clip = [optax.clip_by_global_norm(train.gradient_clip)] if train.gradient_clip else []
    decay = [optax.add_decayed_weights(train.weight_decay)] if train.weight_decay else []
    return optax.chain(*clip, direction, *decay)


def _muon(beta1: float, beta2: float) -> optax.GradientTransformation:
    """Muon for maps between channels, Nesterov's Adam for all else.

    Matrices of one shape go together: one by one they make a GPU's program nearly half as long again
    (benchmarks/RESULTS.md). So the state holds stacks of them, not a tree like the parameters'.
    """
    inner = contrib.muon(
        -1.0,
        beta=beta1,
        consistent_rms=0.2,
        adam_b1=beta1,
        adam_b2=beta2,
        muon_weight_dimension_numbers=lambda stacked: {
            "matrices": dict.fromkeys(stacked["matrices"], contrib.MuonDimensionNumbers(1, 2)),
            "others": [None] * len(stacked["others"]),
        },
    )

    def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = inner.update(_stack(gradients), state, _stack(params))
        return _unstack(updates, gradients), state

    return optax.GradientTransformation(lambda params: inner.init(_stack(params)), update)


def _stack(tree: Any) -> dict[str, Any]:
    """Leaves of a tree: "matrices", arrays [n, rows, columns] by their shape; "others", a list."""
    matrices: dict[str, list] = {}
    others = []
    for leaf in jax.tree.leaves(tree):
        (matrices.setdefault(_shape_name(leaf), []) if _is_matrix(leaf) else others).append(leaf)
    return {"matrices": {name: jnp.stack(leaves) for name, leaves in matrices.items()}, "others": others}


def _unstack(stacked: dict[str, Any], like: Any) -> Any:
    """What `_stack` has made of a tree of the same shapes as `like`, as a tree again."""
    matrices = {name: iter(array) for name, array in stacked["matrices"].items()}
    others = iter(stacked["others"])
    return jax.tree.map(lambda leaf: next(matrices[_shape_name(leaf)] if _is_matrix(leaf) else others), like)


def _is_matrix(leaf: Any) -> bool:
    """Whether Muon moves a leaf: a map between channels; not one that reads the spectra or writes the masks."""
    return leaf.ndim == 2 and min(leaf.shape) > 2


def _shape_name(leaf: Any) -> str:
    return "x".join(map(str, leaf.shape))


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
