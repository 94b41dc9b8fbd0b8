"""How the metric discriminator judges and learns, as pure functions over an explicit state.

Its labels are PESQ values, which processes beside the training compute (`saf_jax.metric_labels`). They come some steps
late: the batches that they belong to wait on the devices, in a ring that is part of the state. So what the
discriminator learns from depends on the step alone, and a resumed run goes on with the same.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from saf_jax import parallel
from saf_jax.config import Config
from saf_jax.losses import Signals, Term, has_speech, valid_frames
from saf_jax.model.discriminator import Discriminator
from saf_jax.transforms import stft


@flax.struct.dataclass
class DiscriminatorState:
    """What a step changes of the discriminator.

    Attributes:
      params: float32.
      optimizer: Adam's moments.
      targets, estimates: float32 [delay, B, N], the last batches of all devices, at unit level; the batch of step s
        lies at s modulo delay.
      samples: int32 [delay, B], their lengths.
    """

    params: Any
    optimizer: Any
    targets: jax.Array
    estimates: jax.Array
    samples: jax.Array


def init_discriminator(config: Config) -> DiscriminatorState:
    """A new state, the same for the same `train.seed` on every machine."""
    magnitudes = jnp.zeros((1, 16, config.stft.bins))
    key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    params = Discriminator(config.discriminator.width).init(key, magnitudes, magnitudes, jnp.array([16]))["params"]
    ring = (config.discriminator.label_delay_steps, config.train.batch_size)
    length = round(config.data.crop_seconds * config.stft.sample_rate_hz)
    return DiscriminatorState(
        params=params,
        optimizer=_optimizer().init(params),
        targets=jnp.zeros((*ring, length)),
        estimates=jnp.zeros((*ring, length)),
        samples=jnp.zeros(ring, jnp.int32),
    )


def judge(config: Config, params: Any, estimate: jax.Array, target: jax.Array, samples: jax.Array) -> jax.Array:
    """Predicted PESQ of each estimate, from 0 (the worst, 1.0) to 1 (the best, 4.5): float32 [B].

    Args:
      config: the settings.
      params: of the discriminator.
      estimate, target: float32 [B, N], unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal.
    """
    target, estimate = (_magnitude(signal, config) for signal in (target, estimate))
    frames = valid_frames(samples, config.stft)
    return Discriminator(config.discriminator.width).apply({"params": params}, target, estimate, frames)


def metric_error(config: Config, params: Any, signals: Signals) -> Term:
    """How far the estimates are from what the discriminator takes for perfect (MetricGAN, equation 4).

    Signals without speech have no PESQ and do not count.
    """
    score = judge(config, params, signals.estimated_samples, signals.target_samples, signals.samples)
    heard = has_speech(signals.target_samples, signals.samples)
    return Term(jnp.sum(jnp.where(heard, (1 - score) ** 2, 0.0)), jnp.sum(heard).astype(score.dtype))


def advance(
    config: Config, state: DiscriminatorState, step: jax.Array, labels: jax.Array, signals: Signals, rate: jax.Array
) -> tuple[DiscriminatorState, dict[str, jax.Array]]:
    """One step of the discriminator: learns from the batch whose labels came, and takes the new one into its ring.

    Clean signals count as perfect (MetricGAN, equation 3).

    Args:
      config: the settings.
      state: before the step.
      step: int32, steps done before.
      labels: float32 [B], normalised PESQ of the batch `label_delay_steps` before, this device's slice; NaN for none.
      signals: of this device's slice of the batch.
      rate: learning rate.

    Returns:
      The new state, and "discriminator", the mean squared error over all devices and both kinds of pairs, and
      "judged", the signals of the batch on all devices, for those who label them.
    """
    slot = step % config.discriminator.label_delay_steps
    count = len(labels)
    start = parallel.device_index() * count
    # What has no label may hold NaN: a product with 0 would keep it.
    known = jnp.isfinite(labels)
    wanted = jnp.where(known, labels, 0.0)
    target, estimate, samples = (
        jax.lax.dynamic_slice_in_dim(ring[slot], start, count)
        for ring in (state.targets, state.estimates, state.samples)
    )
    target, estimate = (jnp.where(known[:, None], signal, 0.0) for signal in (target, estimate))
    examples = parallel.sum_over_devices(jnp.sum(known))

    def loss_of(params: Any) -> jax.Array:
        clean_score = judge(config, params, target, target, samples)
        error = (clean_score - 1) ** 2 + (judge(config, params, estimate, target, samples) - wanted) ** 2
        return jnp.sum(jnp.where(known, error, 0.0)) / jnp.maximum(examples, 1)

    loss, gradient = parallel.sum_over_devices(jax.value_and_grad(loss_of)(state.params))
    updates, moments = _optimizer().update(gradient, state.optimizer)
    params = jax.tree.map(lambda value, update: value - rate * update, state.params, updates)
    usable = jnp.isfinite(optax.tree.norm(gradient)) & (examples > 0)
    learned = (params, moments)
    params, moments = jax.tree.map(
        lambda new, old: jnp.where(usable, new, old), learned, (state.params, state.optimizer)
    )
    new = parallel.gather_over_devices((signals.target_samples, signals.estimated_samples, signals.samples))
    targets, estimates, lengths = (
        ring.at[slot].set(values) for ring, values in zip((state.targets, state.estimates, state.samples), new)
    )
    judged = dict(zip(("target", "estimate", "samples"), new))
    return DiscriminatorState(params, moments, targets, estimates, lengths), {"discriminator": loss, "judged": judged}


def _optimizer() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.9, b2=0.999)


def _magnitude(samples: jax.Array, config: Config) -> jax.Array:
    """Compressed magnitudes; the constant, some 60 dB below unit level, bounds their gradient at silence."""
    spectrum = stft(samples, config.stft)
    power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
    return (power + 1e-4) ** (config.stft.compression / 2)
