"""One step of training and of validation: pure functions over an explicit state."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from saf_jax import parallel
from saf_jax.config import Config
from saf_jax.discriminator_step import advance, init_discriminator, metric_error
from saf_jax.level import safe_level, sample_level
from saf_jax.losses import Signals, Term, has_speech, loss_terms, valid_frames, weighted_sum
from saf_jax.model.net import SAFNet
from saf_jax.optimizer import average_weights, build_optimizer
from saf_jax.signal_path import Analysis, analyse, synthesise

Batch = dict[str, jax.Array]

# Only then is the usual size of a gradient known.
_SETTLED_STEPS = 100


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32, steps done.
      params: trained parameters, float32.
      average: moving average of the parameters; empty where `train.average_decay` is 0.
      batch_stats: stored averages of batch norm; empty for other norms.
      optimizer: Adam's moments.
      learning_rate_scale: float32, factor on the scheduled learning rate, lowered by the plateau schedule.
      usual_norm: float32, running mean of the gradient's norm.
      skipped: int32, steps left out because their gradient was not finite or exploded.
      discriminator: a `DiscriminatorState`; empty where `loss.metric` is 0.
    """

    step: jax.Array
    params: Any
    average: Any
    batch_stats: Any
    optimizer: Any
    learning_rate_scale: jax.Array
    usual_norm: jax.Array
    skipped: jax.Array
    discriminator: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `SAFNet.apply` takes, with the parameters under training."""
        return {"params": self.params, "batch_stats": self.batch_stats} if self.batch_stats else {"params": self.params}

    @property
    def best_variables(self) -> dict[str, Any]:
        """What `SAFNet.apply` takes, for use: with the average of the parameters where there is one."""
        return {**self.variables, "params": self.average} if self.average else self.variables


def build_model(config: Config, *, training: bool = False) -> SAFNet:
    """The network; in training with the config's precision and batch norm over all devices."""
    if not training:
        return SAFNet(config.model)
    dtype = jnp.bfloat16 if config.train.precision == "bfloat16" else jnp.float32
    return SAFNet(config.model, axis_name=parallel.DEVICES, dtype=dtype, remat=config.train.remat)


def init_state(config: Config, variables: dict[str, Any] | None = None) -> TrainState:
    """A new state, the same for the same `train.seed` on every machine; from given variables where there are some."""
    if variables is None:
        spectrum = jnp.zeros((1, 8, config.stft.bins), jnp.complex64)
        variables = build_model(config).init(jax.random.key(config.train.seed), spectrum)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        average=params if config.train.average_decay else {},
        batch_stats=variables.get("batch_stats", {}),
        optimizer=build_optimizer(config).init(params),
        learning_rate_scale=jnp.ones(()),
        usual_norm=jnp.zeros(()),
        skipped=jnp.zeros((), jnp.int32),
        discriminator=init_discriminator(config) if config.loss.metric else {},
    )


def batch_terms(
    config: Config, model: SAFNet, variables: dict[str, Any], batch: Batch, train: bool
) -> tuple[dict[str, Term], Any]:
    """Loss terms of one device's slice of a batch, and the new stored averages of batch norm; see `batch_signals`.

    The metric discriminator's term is none of them.
    """
    signals, batch_stats = batch_signals(config, model, variables, batch, train)
    return loss_terms(signals, config), batch_stats


def batch_signals(
    config: Config, model: SAFNet, variables: dict[str, Any], batch: Batch, train: bool
) -> tuple[Signals, Any]:
    """What the losses of one device's slice of a batch compare, and the new stored averages of batch norm.

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
    return compared_signals(estimate, noisy, batch, config), batch_stats


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


def term_counts(config: Config, batch: Batch) -> dict[str, jax.Array]:
    """Counts of the loss terms of a batch, without the network: they depend on targets and lengths alone."""
    noisy = analyse(batch["noisy"], config)
    signals = compared_signals(noisy.spectrum, noisy, batch, config)
    counts = {name: term.count for name, term in loss_terms(signals, config).items()}
    if config.loss.metric:
        counts["metric"] = jnp.sum(has_speech(signals.target_samples, signals.samples)).astype(jnp.float32)
    return counts


def build_train_step(config: Config) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
    """The step of one device; `parallel.map_over_devices` runs it on all.

    Besides what `batch_signals` takes, a batch may hold "learning_rate", float32 [1], the scheduled one: an input, so
    that one compiled program serves trainings of all lengths and rates. Without it the rate is `train.learning_rate`.

    The loss is the sum over all devices divided by the count over all devices, so that it does not depend on how a
    padded batch is spread over them, nor on how many parts it is taken in (`train.accumulate`). A step whose gradient
    is not finite, or far beyond the usual, changes nothing but the counters.
    """
    model, optimizer = build_model(config, training=True), build_optimizer(config)
    train = config.train

    def part_gradient(state: TrainState, batch_stats: Any, counts: dict[str, jax.Array], batch: Batch) -> tuple:
        """What a part of the batch adds to gradient and loss; the new stored averages of batch norm; what is judged."""

        def loss_of(params: Any) -> tuple[jax.Array, tuple]:
            variables = {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}
            signals, changed = batch_signals(config, model, variables, batch, train=not train.freeze_norm)
            terms = loss_terms(signals, config)
            if config.loss.metric:
                terms["metric"] = metric_error(config, state.discriminator.params, signals)
            # With the count of the whole batch below the line, the parts' gradients sum to that of the whole.
            shares = {name: Term(term.total, counts[name]) for name, term in terms.items()}
            return weighted_sum(shares, config.loss), (shares, changed, signals)

        (share, (shares, changed, signals)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        totals = {name: term.total / jnp.maximum(term.count, 1) for name, term in shares.items()}
        return (gradient, {"loss": share, **totals}), changed, signals if config.loss.metric else {}

    def device_gradient(state: TrainState, batch: Batch) -> tuple:
        """As `part_gradient`, for the device's slice of the batch taken in `train.accumulate` parts."""
        counts = parallel.sum_over_devices(term_counts(config, batch))
        if train.accumulate == 1:
            return part_gradient(state, state.batch_stats, counts, batch)

        def add_part(carry: tuple, part: Batch) -> tuple[tuple, Any]:
            sums, batch_stats = carry
            found, batch_stats, judged = part_gradient(state, batch_stats, counts, part)
            return (jax.tree.map(jnp.add, sums, found), batch_stats), judged

        parts = jax.tree.map(lambda leaf: leaf.reshape(train.accumulate, -1, *leaf.shape[1:]), batch)
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        shapes, *_ = jax.eval_shape(part_gradient, state, state.batch_stats, counts, first)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (found, batch_stats), judged = jax.lax.scan(add_part, (nothing, state.batch_stats), parts)
        return found, batch_stats, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), judged)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        batch = dict(batch)
        scheduled = batch.pop("learning_rate", None)
        found, batch_stats, judged = device_gradient(state, batch)
        gradient, losses = parallel.sum_over_devices(found)

        norm = optax.tree.norm(gradient)
        usable = jnp.isfinite(norm) & jnp.isfinite(losses["loss"])
        if train.explosion_factor:
            settled = state.step - state.skipped >= _SETTLED_STEPS
            usable &= ~settled | (norm <= train.explosion_factor * state.usual_norm)
        rate = state.learning_rate_scale * (train.learning_rate if scheduled is None else scheduled[0])
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params = jax.tree.map(lambda value, update: value - rate * update, state.params, updates)
        average = average_weights(state.average, params, state.step, train.average_decay) if state.average else {}
        usual_norm = jnp.where(state.step == state.skipped, norm, 0.99 * state.usual_norm + 0.01 * norm)

        def keep_if_bad(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(usable, a, b), new, old)

        new_state = state.replace(
            step=state.step + 1,
            params=keep_if_bad(params, state.params),
            average=keep_if_bad(average, state.average),
            batch_stats=keep_if_bad(batch_stats, state.batch_stats),
            optimizer=keep_if_bad(moments, state.optimizer),
            usual_norm=keep_if_bad(usual_norm, state.usual_norm),
            skipped=state.skipped + jnp.where(usable, 0, 1),
        )
        result = {**losses, "gradient_norm": norm, "learning_rate": rate, "usable": usable}
        if config.loss.metric:
            its_rate = config.discriminator.learning_rate * rate / train.learning_rate
            discriminator, its_result = advance(
                config, state.discriminator, state.step, batch["labels"], judged, its_rate
            )
            new_state, result = new_state.replace(discriminator=discriminator), result | its_result
        return new_state, result

    return step


def build_validation_step(config: Config) -> Callable[[TrainState, Batch], tuple[None, dict[str, Term]]]:
    """Terms of one batch, summed over all devices; the caller adds them up over batches."""
    model = build_model(config)

    def step(state: TrainState, batch: Batch) -> tuple[None, dict[str, Term]]:
        terms, _ = batch_terms(config, model, state.best_variables, batch, train=False)
        return None, parallel.sum_over_devices(terms)

    return step
