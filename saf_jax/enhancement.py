"""Enhancing signals in memory: any length, a handful of compiled programs.

Memory is bounded by the longest block, except for causal networks: their running level has no finite context, so a
signal longer than that block is worked off in one piece.
"""

import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saf_jax.audio import resample
from saf_jax.config import Config
from saf_jax.level import gated_level
from saf_jax.model.cost import context_frames
from saf_jax.model.net import SAFNet
from saf_jax.signal_path import analyse, synthesise

# Signals are padded to one of these lengths, so that recordings of any length need no more compiled programs than
# there are lengths; what is longer than the last is worked off in overlapping blocks of it.
BUCKET_SECONDS = (1.5, 2.5, 4.0, 6.0, 10.0, 20.0)


@functools.partial(jax.jit, static_argnames="config")
def enhance_padded(
    config: Config, variables: Any, samples: jax.Array, lengths: jax.Array, level: jax.Array | None = None
) -> jax.Array:
    """The pure core: padded signals at the config's rate -> their enhanced versions.

    Args:
      config: hashable, static under jit.
      variables: of `SAFNet(config.model)`.
      samples: float32 [B, N], zero beyond each signal's length.
      lengths: int32 [B], number of samples of each signal.
      level: float32 [B], to divide by instead of each signal's own level; not for causal configs.

    Returns:
      float32 [B, N]; zero beyond each length. Each signal's result does not depend on N or on the other signals.
    """
    given = None if level is None else level[:, None, None]
    spectrum, used = analyse(samples, config, given)
    frames = -(-(lengths + config.stft.window_samples // 2) // config.stft.hop_samples)
    estimate = SAFNet(config.model).apply(variables, spectrum, frames)
    enhanced = synthesise(estimate, used, config, samples.shape[-1])
    return jnp.where(jnp.arange(samples.shape[-1]) < lengths[:, None], enhanced, 0.0)


class Block(NamedTuple):
    """A piece of a signal, with the context that makes its inner part equal to that of the whole.

    Attributes:
      start, stop: the samples that the network sees.
      keep_start, keep_stop: the samples of the whole signal that this block gives.
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def plan_blocks(length: int, block: int, context: int) -> list[Block]:
    """Covers `length` samples with blocks of at most `block` samples that overlap by twice `context`."""
    if length <= block:
        return [Block(0, length, 0, length)]
    step = block - 2 * context
    blocks = []
    for start in range(0, length, step):
        stop = min(start + block, length)
        keep_start = start + context if start else 0
        keep_stop = stop - context if stop < length else length
        blocks.append(Block(start, stop, keep_start, keep_stop))
        if stop == length:
            return blocks
    raise AssertionError("the blocks must reach the end")


class Enhancer:
    """Enhances signals of any length and rate with one network.

    A callable for services: compiled programs are kept between calls, and calls from several threads are safe.

    Args:
      config: settings of the network.
      variables: its parameters, as `load_weights` or `model.init` give them.
    """

    def __init__(self, config: Config, variables: Any):
        self.config = config
        self.variables = jax.device_put(variables)
        self._lock = threading.Lock()
        rate, hop = config.stft.sample_rate_hz, config.stft.hop_samples
        # Blocks start on the hop grid, so that their frames are those of the whole signal. The context also covers the
        # frames at a block's edges, whose windows reach beyond it.
        windows = config.stft.window_samples // hop
        self._context = (max(context_frames(config.model)) + windows + 1) * hop
        seconds = [-(-round(s * rate) // hop) * hop for s in BUCKET_SECONDS]
        # A network with a very long context needs a longest block in which enough is left between the contexts.
        self._buckets = [*seconds[:-1], max(seconds[-1], 4 * self._context)]

    def __call__(self, samples: np.ndarray, sample_rate_hz: int, level: float | None = None) -> np.ndarray:
        """Enhances one signal.

        Args:
          samples: float [N], full scale 1, N >= 1, finite.
          sample_rate_hz: of `samples`.
          level: RMS to take for the signal's own, so that channels or parts of one recording share it.

        Returns:
          float32 [N], the same rate.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or len(samples) == 0:
            raise ValueError(f"samples must be [N] with N >= 1, not of shape {samples.shape}")
        if not samples.any():
            # A level that another channel set would let the Bias Decoder's output through.
            return np.zeros_like(samples)
        rate = self.config.stft.sample_rate_hz
        if sample_rate_hz == rate:
            return self._enhance(samples, level)
        inner = resample(samples, sample_rate_hz, rate)
        if len(inner) == 0:
            return np.zeros_like(samples)
        outer = resample(self._enhance(inner, level), rate, sample_rate_hz)
        # Resampling there and back rounds the length twice.
        return np.pad(outer, (0, max(0, len(samples) - len(outer))))[: len(samples)]

    def many(self, signals: Sequence[np.ndarray], sample_rate_hz: int) -> list[np.ndarray]:
        """Enhances several signals of one rate: a list of float [N] -> a list of float32 [N]."""
        return [self(signal, sample_rate_hz) for signal in signals]

    def level(self, samples: np.ndarray, sample_rate_hz: int) -> float:
        """The level that a signal float [N] is divided by: RMS over its frames within 40 dB of the loudest."""
        hop = max(1, round(self.config.stft.hop_samples * sample_rate_hz / self.config.stft.sample_rate_hz))
        padded = np.pad(np.asarray(samples, np.float64), (0, -len(samples) % hop))
        return float(gated_level(np.mean(padded.reshape(-1, hop) ** 2, axis=-1)))

    def _enhance(self, samples: np.ndarray, level: float | None) -> np.ndarray:
        if self.config.model.causal and len(samples) > self._buckets[-1]:
            return self._enhance_causal(samples)
        if level is None and not self.config.model.causal:
            level = self.level(samples, self.config.stft.sample_rate_hz)
        enhanced = np.empty_like(samples)
        for block in plan_blocks(len(samples), self._buckets[-1], self._context):
            out = self._run(samples[block.start : block.stop], level)
            enhanced[block.keep_start : block.keep_stop] = out[
                block.keep_start - block.start : block.keep_stop - block.start
            ]
        return enhanced

    def _run(self, samples: np.ndarray, level: float | None) -> np.ndarray:
        """One piece that fits the longest bucket."""
        length = len(samples)
        bucket = next(bucket for bucket in self._buckets if bucket >= length)
        padded = np.zeros((1, bucket), np.float32)
        padded[0, :length] = samples
        levels = None if level is None or self.config.model.causal else np.array([level], np.float32)
        # jit is thread-safe; the lock keeps threads from compiling the same program at the same time.
        with self._lock:
            out = enhance_padded(self.config, self.variables, padded, np.array([length], np.int32), levels)
        return np.asarray(out)[0, :length]

    def _enhance_causal(self, samples: np.ndarray) -> np.ndarray:
        """A causal config's running level has no finite context: the whole signal in one piece of a coarse length."""
        bucket = self._buckets[-1]
        padded = np.zeros((1, -(-len(samples) // bucket) * bucket), np.float32)
        padded[0, : len(samples)] = samples
        out = enhance_padded(self.config, self.variables, padded, np.array([len(samples)], np.int32))
        return np.asarray(out)[0, : len(samples)]


def enhance(config: Config, variables: Any, samples: np.ndarray, sample_rate_hz: int = 16000) -> np.ndarray:
    """Enhances a signal, or several of one length.

    Args:
      config: settings of the network.
      variables: its parameters.
      samples: float [N] or [B, N], full scale 1; each row of [B, N] is a signal of its own.
      sample_rate_hz: of `samples`.

    Returns:
      float32 of the same shape and rate.
    """
    # Compiled programs belong to `enhance_padded`, not to an Enhancer: making one only copies the parameters.
    enhancer = Enhancer(config, variables)
    samples = np.asarray(samples)
    if samples.ndim == 1:
        return enhancer(samples, sample_rate_hz)
    if samples.ndim != 2:
        raise ValueError(f"samples must be [N] or [B, N], not of shape {samples.shape}")
    return np.stack(enhancer.many(list(samples), sample_rate_hz))
