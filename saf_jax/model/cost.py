"""What the network costs and sees, counted from the shapes of its layers, whatever implementation computes them."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from saf_jax.config import Config, ModelConfig
from saf_jax.model.delay import network_delay
from saf_jax.model.layers import DepthwiseConv, Pointwise
from saf_jax.model.local_attention import LocalBandAttention
from saf_jax.model.net import SAFNet
from saf_jax.model.transformer import SelfAttention


def context_frames(model: ModelConfig) -> tuple[float, float]:
    """Frames before and after frame t that output frame t depends on; infinitely many for transformer layers."""
    # How late a network that looks ahead gives its estimate is how far it sees; a causal one sees it all in the past.
    one_side = network_delay(dataclasses.replace(model, causal=False))
    return (2 * one_side, 0) if model.causal else (one_side, one_side)


@functools.cache
def count_costs(config: Config, frames: int | None = None) -> tuple[int, int]:
    """Parameters and multiply-accumulates of the network, without STFT, norms and activations.

    Args:
      config: the settings.
      frames: number of frames T to count for; None: those of one second of audio.

    Returns:
      Number of parameters and of multiply-accumulates: 1x1 convolutions, depth-wise convolutions and the two products
      of attention (scores, weighted values). With transformer layers the latter grow with the square of T.
    """
    if frames is None:
        frames = math.ceil(config.stft.sample_rate_hz / config.stft.hop_samples)
    total = 0

    def count(call, args, kwargs, context):
        nonlocal total
        out = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__":
            return out
        if isinstance(module, Pointwise):
            total += math.prod(out.shape) * sum(x.shape[-1] for x in args)
        elif isinstance(module, DepthwiseConv):
            total += math.prod(out.shape) * module.time_taps * module.frequency_taps
        elif isinstance(module, LocalBandAttention):
            total += 2 * math.prod(out.shape) * module.config.local_window
        elif isinstance(module, SelfAttention):
            total += 2 * math.prod(out.shape) * out.shape[{"time": 1, "frequency": 2}[module.over]]
        return out

    spectrum = jax.ShapeDtypeStruct((1, frames, config.stft.bins), jnp.complex64)
    model = SAFNet(config.model)
    with nn.intercept_methods(count):
        variables = jax.eval_shape(model.init, jax.random.key(0), spectrum)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])), total


def count_macs_per_second(config: Config, seconds: float = 1.0) -> float:
    """Multiply-accumulates for one second of audio, frames counted exactly where the hop does not divide a second.

    Args:
      config: the settings.
      seconds: length of the signal that the second is part of; matters for transformer layers only, whose attention
        over time costs in proportion to it.
    """
    frames = math.ceil(seconds * config.stft.sample_rate_hz / config.stft.hop_samples)
    return count_costs(config, frames)[1] * config.stft.sample_rate_hz / config.stft.hop_samples / frames
