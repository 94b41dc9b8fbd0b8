"""One step of training and of validation: pure functions over an explicit state."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from saf_jax import parallel
from saf_jax.config import Config
from saf_jax.level import safe_level, sample_level
from saf_jax.losses import Signals, Term, loss_terms, valid_frames, weighted_sum
from saf_jax.model.net import SAFNet
from saf_jax.signal_path import Analysis, analyse, synthesise

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32, steps done.
      params: trained parameters, float32.
      batch_stats: stored averages of batch norm; empty for other norms.
      optimizer: Adam's moments.
      learning_rate_scale: float32, factor on the scheduled learning rate, lowered by the plateau schedule.
      skipped: int32, steps left out because their gradient was not finite.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer: Any
    learning_rate_scale: jax.Array
    skipped: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What `SAFNet.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats} if self.batch_stats else {"params": self.params}


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """Clipping and Adam's direction; the learning rate is applied in the step."""
    train = config.train
    clip = [optax.clip_by_global_norm(train.gradient_clip)] if train.gradient_clip else []
    return optax.chain(*clip, optax.scale_by_adam(b1=train.beta1, b2=train.beta2))


def learning_rate(config: Config, step: jax.Array, total_steps: int) -> jax.Array:
    """Scheduled learning rate at a step, before the plateau factor."""
    train = config.train
    rate = jnp.asarray(train.learning_rate, jnp.float32)
    if train.warmup_steps:
        rate = rate * jnp.minimum(1.0, (step + 1) / train.warmup_steps)
    if train.schedule == "cosine":
        done = (step - train.warmup_steps) / max(1, total_steps - train.warmup_steps)
        rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
    return rate


def build_model(config: Config, *, training: bool = False) -> SAFNet:
    """The network; in training with the config's precision and batch norm over all devices."""
    if not training:
        return SAFNet(config.model)
    dtype = jnp.bfloat16 if config.train.precision == "bfloat16" else jnp.float32
    return SAFNet(config.model, axis_name=parallel.DEVICES, dtype=dtype)


def init_state(config: Config) -> TrainState:
    """A new state, the same for the same `train.seed` on every machine."""
    spectrum = jnp.zeros((1, 8, config.stft.bins), jnp.complex64)
    variables = build_model(config).init(jax.random.key(config.train.seed), spectrum)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        optimizer=build_optimizer(config).init(variables["params"]),
        learning_rate_scale=jnp.ones(()),
        skipped=jnp.zeros((), jnp.int32),
    )


def batch_terms(
    config: Config, model: SAFNet, variables: dict[str, Any], batch: Batch, train: bool
) -> tuple[dict[str, Term], Any]:
    """Loss terms of one device's slice of a batch, and the new stored averages of batch norm.

    Args:
      config: the settings.
      model: from `build_model`.
      variables: its parameters and stored averages.
      batch: "noisy" and "clean" float32 [B, N], "samples" int32 [B], the valid samples of each.
      train: batch norm takes the batch's statistics.
    """
    noisy = analyse(batch["noisy"], config)
    frames = valid_frames(batch["samples"], config.stft)
    if train and "batch_stats" in variables:
        estimate, changed = model.apply(variables, noisy.spectrum, frames, train=True, mutable=["batch_stats"])
        batch_stats = changed["batch_stats"]
    else:
        estimate, batch_stats = model.apply(variables, noisy.spectrum, frames), variables.get("batch_stats", {})
    return loss_terms(compared_signals(estimate, noisy, batch, config), config), batch_stats


def compared_signals(estimate: jax.Array, noisy: Analysis, batch: Batch, config: Config) -> Signals:
    """What losses compare; the compiler leaves out what no loss asks for.

    Args:
      estimate: complex64 [B, T, F], compressed domain.
      noisy: of `batch["noisy"]`.
      batch: as in `batch_terms`.
      config: the settings.
    """
    samples, length = batch["samples"], batch["noisy"].shape[1]
    inside = jnp.arange(length) < samples[:, None]
    estimated = jnp.where(inside, synthesise(estimate, noisy.level, config, length), 0.0)
    # One factor for a whole signal also where the network works at a running level.
    level = safe_level(sample_level(batch["noisy"], config.stft))[:, None]
    return Signals(
        estimate=estimate,
        target=analyse(batch["clean"], config, noisy.level).spectrum,
        resynthesised=analyse(estimated, config, noisy.level).spectrum,
        estimated_samples=estimated / level,
        target_samples=jnp.where(inside, batch["clean"], 0.0) / level,
        frames=valid_frames(samples, config.stft),
        samples=samples,
    )


def build_train_step(config: Config, total_steps: int) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
    """The step of one device; `parallel.map_over_devices` runs it on all.

    The loss is the sum over all devices divided by the count over all devices, so that it does not depend on how a
    padded batch is spread over them. A step whose gradient is not finite changes nothing but the counters.
    """
    model, optimizer = build_model(config, training=True), build_optimizer(config)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        def loss_of(params: Any) -> tuple[jax.Array, tuple]:
            variables = state.replace(params=params).variables
            terms, batch_stats = batch_terms(config, model, variables, batch, train=True)
            counts = parallel.sum_over_devices({name: term.count for name, term in terms.items()})
            shares = {name: Term(term.total, counts[name]) for name, term in terms.items()}
            return weighted_sum(shares, config.loss), (shares, batch_stats)

        # Each device's share of the loss has the count of all devices below the line: the sum of the shares'
        # gradients is the gradient of the whole.
        (share, (shares, batch_stats)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        totals = {name: term.total / jnp.maximum(term.count, 1) for name, term in shares.items()}
        loss, totals, gradient = parallel.sum_over_devices((share, totals, gradient))

        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        rate = learning_rate(config, state.step, total_steps) * state.learning_rate_scale
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params = jax.tree.map(lambda value, update: value - rate * update, state.params, updates)

        def keep_if_bad(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        new_state = state.replace(
            step=state.step + 1,
            params=keep_if_bad(params, state.params),
            batch_stats=keep_if_bad(batch_stats, state.batch_stats),
            optimizer=keep_if_bad(moments, state.optimizer),
            skipped=state.skipped + jnp.where(finite, 0, 1),
        )
        return new_state, {"loss": loss, **totals, "gradient_norm": norm, "learning_rate": rate, "finite": finite}

    return step


def build_validation_step(config: Config) -> Callable[[TrainState, Batch], tuple[None, dict[str, Term]]]:
    """Terms of one batch, summed over all devices; the caller adds them up over batches."""
    model = build_model(config)

    def step(state: TrainState, batch: Batch) -> tuple[None, dict[str, Term]]:
        terms, _ = batch_terms(config, model, state.variables, batch, train=False)
        return None, parallel.sum_over_devices(terms)

    return step
