"""Enhancing signals: any length, a handful of compiled programs, memory bounded by the longest block.

Networks with transformer layers are the exception: they take each signal whole, as long as memory holds it.
"""

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saf_jax import parallel, streaming
from saf_jax.audio import resample
from saf_jax.blocks import equal_blocks
from saf_jax.config import Config
from saf_jax.errors import UserError
from saf_jax.level import gated_level
from saf_jax.model.net import SAFNet
from saf_jax.model.transformer import attention_bytes
from saf_jax.signal_path import analyse, is_sounding, synthesise

# Where a batch pays (not on a CPU), signals are padded to one of these lengths, so that recordings of any length need
# no more compiled programs than there are lengths.
BUCKET_SECONDS = (1.5, 2.5, 4.0, 6.0, 10.0, 20.0)
# Transformer layers need the signal whole: beyond the last of these it is padded to a multiple of so much. Steps that
# grew with the length would cost too much, since time and memory go with its square.
LONG_BUCKET_SECONDS = 5.0
# The part of the memory that attention over time may take; the rest is for features and for others.
MEMORY_SHARE = 0.8
# What is longer, and everything on a CPU, is worked off in pieces: on a CPU so short that one array of features takes
# this many bytes, of which the caches hold a few. Measured on two cores, 10 s and the paper's network: 32, 48, 64, 96
# frames take 0.137, 0.121, 0.138 and 0.132 of real time; for a fifth of the features 64 frames are faster than 48.
PIECE_BYTES_ON_CPU = 2**20


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
      level: float32 [B], to divide by instead of each signal's own level; causal configs go by their running level.

    Returns:
      float32 [B, N]; zero beyond each length, and where the signal is digital silence for a window. Each signal's
      result does not depend on N or on the other signals.
    """
    given = None if level is None or config.model.causal else level[:, None, None]
    spectrum, used = analyse(samples, config, given)
    frames = -(-(lengths + config.stft.window_samples // 2) // config.stft.hop_samples)
    estimate = SAFNet(config.model).apply(variables, spectrum, frames)
    # Digital silence stays silent, whatever the network adds.
    estimate = estimate * is_sounding(spectrum)[..., None]
    enhanced = synthesise(estimate, used, config, samples.shape[-1])
    return jnp.where(jnp.arange(samples.shape[-1]) < lengths[:, None], enhanced, 0.0)


def _piece_frames(config: Config) -> int:
    """Frames of a piece on a CPU: a multiple of 16, from 32 to 192."""
    frame_bytes = -(-config.stft.bins // config.model.frequency_stride) * config.model.width * 4
    return min(max(PIECE_BYTES_ON_CPU // frame_bytes // 16 * 16, 32), 192)


@functools.cache
def _enhance_rows(config: Config):
    """`enhance_padded` for batches that all local devices share."""

    def enhance(variables: Any, rows: tuple) -> jax.Array:
        return enhance_padded(config, variables, *rows)

    return parallel.spread_rows(enhance)


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
        self._compiled: set[Any] = set()
        rate, hop = config.stft.sample_rate_hz, config.stft.hop_samples
        self._buckets = [-(-round(seconds * rate) // hop) * hop for seconds in BUCKET_SECONDS]
        self._long_bucket = -(-round(LONG_BUCKET_SECONDS * rate) // hop) * hop
        self._takes_whole = config.model.layer_kind == "transformer"
        self._piece = _piece_frames(config) * hop if parallel.runs_on_cpu() else self._buckets[-1]

    @functools.cached_property
    def _variables_everywhere(self) -> Any:
        return parallel.replicate(self.variables)

    def __call__(self, samples: np.ndarray, sample_rate_hz: int, level: float | None = None) -> np.ndarray:
        """Enhances one signal.

        Args:
          samples: float [N], full scale 1, N >= 1, finite.
          sample_rate_hz: of `samples`.
          level: RMS to take for the signal's own, so that channels or parts of one recording share it; causal networks
            go by their running level.

        Returns:
          float32 [N], the same rate.

        Raises:
          ValueError: arguments that are none of these.
          UserError: it is too long for a network with transformer layers, see `check_seconds`.
        """
        return self.many([samples], sample_rate_hz, None if level is None else [level])[0]

    def many(
        self, signals: Sequence[np.ndarray], sample_rate_hz: int, levels: Sequence[float] | None = None
    ) -> list[np.ndarray]:
        """Enhances several signals of one rate: in batches, on all local devices.

        Args:
          signals: float [N] each, full scale 1, N >= 1, finite.
          sample_rate_hz: of all of them.
          levels: for each signal the RMS to take for its own, see `__call__`.

        Returns:
          For each signal float32 [N], the same rate. The numbers are those of `__call__` to rounding.

        Raises:
          ValueError: arguments that are none of these.
          UserError: one is too long for a network with transformer layers, see `check_seconds`.
        """
        rate = self.config.stft.sample_rate_hz
        _check_rate_and_levels(sample_rate_hz, levels, len(signals))
        signals = [_usable(samples) for samples in signals]
        for samples in signals:
            self.check_seconds(len(samples) / sample_rate_hz)
        done: list[Any] = [None] * len(signals)
        # Only the batch in work is held at the network's rate.
        for batch in self._batches([-(-len(samples) * rate // sample_rate_hz) for samples in signals]):
            inner = [resample(signals[i], sample_rate_hz, rate) for i in batch]
            given = [None if levels is None else levels[i] for i in batch]
            for i, enhanced in zip(batch, self._enhance(inner, given)):
                outer = resample(enhanced, rate, sample_rate_hz)
                # Resampling there and back rounds the length twice.
                length = len(signals[i])
                done[i] = np.pad(outer, (0, max(0, length - len(outer))))[:length]
        return done

    def blocks(
        self, pieces: Iterable[np.ndarray], level: float | None = None, block_samples: int | None = None
    ) -> Iterator[np.ndarray]:
        """Enhances a recording of any length piece by piece; holds a block of it.

        With transformer layers the recording is gathered and enhanced whole, see `check_seconds`.

        Args:
          pieces: float [C, n], n >= 0, at the network's rate: the recording, one piece after another. Samples that are
            not finite count as 0, but with transformer layers.
          level: RMS that the channels share; causal networks go by a running level of all channels together.
          block_samples: what the network takes at once, a multiple of `hop_samples`; None: what is fastest.

        Yields:
          float32 [C, m], as soon as they are final; joined, they are as long as the pieces joined and equal what one
          pass over the whole gives.

        Raises:
          UserError: it is too long for a network with transformer layers.
        """
        if level is None and not self.config.model.causal:
            raise ValueError("a network that is not causal needs the level of the whole recording")
        if self._takes_whole:
            yield from self._whole(pieces, level)
            return
        size = self._piece if block_samples is None else block_samples
        if size < 1 or size % self.config.stft.hop_samples:
            raise ValueError(
                f"block_samples={size}: must be a multiple of {self.config.stft.hop_samples}, at least one"
            )
        states: list[streaming.StreamState] = []
        given, position = 0, -streaming.delay_samples(self.config)
        for block in equal_blocks(pieces, size):
            channels, length = block.shape
            if not states:
                given_level = None if self.config.model.causal else np.array([level])
                states = [streaming.start(self.config, 1, given_level)] * channels
            if length < size:
                # The last block tells where the signal ends.
                states = [state._replace(left=np.array([length], np.int32)) for state in states]
                block = np.pad(block, ((0, 0), (0, size - length)))
            given += length
            yield self._advance(states, block)[:, max(0, -position) : max(0, given - position)]
            position += size
        while states and position < given:
            silence = np.zeros((channels, size), np.float32)
            yield self._advance(states, silence)[:, max(0, -position) : given - position]
            position += size

    def check_seconds(self, seconds: float) -> None:
        """Raises `UserError` if a signal of that length is too long for this network in this machine's memory.

        Only networks with transformer layers are limited: all frames attend to all others, and a result from parts of
        the signal would be another network's.
        """
        if not self._takes_whole:
            return
        stft, limit = self.config.stft, parallel.memory_limit_gb()
        length = math.ceil(seconds * stft.sample_rate_hz)

        def needed(samples: int) -> float:
            return attention_bytes(self.config.model, stft.bins, stft.frames(samples)) / 1e9

        if limit is None or needed(self._bucket(length)) <= MEMORY_SHARE * limit:
            return
        buckets = [*self._buckets, *range(self._bucket(self._buckets[-1] + 1), length, self._long_bucket)]
        most = max((bucket for bucket in buckets if needed(bucket) <= MEMORY_SHARE * limit), default=0)
        raise UserError(
            f"a signal of {seconds:.1f} s: model.layer_kind=transformer attends to the whole of it, which takes "
            f"{needed(self._bucket(length)):.0f} GB of memory: cut it into parts of at most "
            f"{most / stft.sample_rate_hz:g} s here, or take a network with model.layer_kind=saf"
        )

    def level(self, samples: np.ndarray, sample_rate_hz: int) -> float:
        """The level that a signal float [N] is divided by: RMS over its frames within 40 dB of the loudest."""
        hop = max(1, round(self.config.stft.hop_samples * sample_rate_hz / self.config.stft.sample_rate_hz))
        padded = np.pad(np.asarray(samples, np.float64), (0, -len(samples) % hop))
        return float(gated_level(np.mean(padded.reshape(-1, hop) ** 2, axis=-1)))

    def _whole(self, pieces: Iterable[np.ndarray], level: float) -> Iterator[np.ndarray]:
        """`blocks` for a network that takes the recording [C, N] whole: one block, channel by channel."""
        parts, length = [], 0
        for piece in pieces:
            parts.append(np.asarray(piece, np.float32))
            length += parts[-1].shape[1]
            # Before all of a recording that is too long is in memory.
            self.check_seconds(length / self.config.stft.sample_rate_hz)
        if length:
            channels = np.concatenate(parts, axis=1)
            yield np.stack([self._enhance([channel], [level])[0] for channel in channels])

    def _advance(self, states: list[streaming.StreamState], block: np.ndarray) -> np.ndarray:
        """Takes the channels' states a block [C, N] further; returns the enhanced channels.

        Channel by channel: neither memory nor compiled programs grow with their number, and equal ones stay equal.
        """
        levels = streaming.common_levels(self.config, states, block) if self.config.model.causal else None
        out = np.empty_like(block)
        for i, state in enumerate(states):
            call = functools.partial(streaming.advance, self.config, self.variables, state, block[i : i + 1], levels)
            states[i], out[i : i + 1] = self._once_compiled(("piece", block.shape[1]), call)
        return out

    def _once_compiled(self, program: Any, call: Callable) -> Any:
        """Keeps threads from compiling the same program at the same time."""
        if program in self._compiled:
            return call()
        with self._lock:
            result = call()
        self._compiled.add(program)
        return result

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Indices of signals that are worked on together: those that are padded to one length."""
        if parallel.runs_on_cpu() and parallel.local_device_count() == 1:
            yield from ([i] for i in range(len(lengths)))
            return
        order = sorted(range(len(lengths)), key=lambda i: (self._bucket(lengths[i]), i))
        for bucket, group in itertools.groupby(order, lambda i: self._bucket(lengths[i])):
            batch = []
            for i in group:
                if lengths[i] > bucket:  # worked off in pieces
                    yield [i]
                    continue
                batch.append(i)
                if len(batch) == self._rows(bucket):
                    yield batch
                    batch = []
            if batch:
                yield batch

    def _bucket(self, length: int) -> int:
        """The shortest padded length that holds `length`, or the longest of all where the signal may be cut."""
        if self._takes_whole and length > self._buckets[-1]:
            return -(-length // self._long_bucket) * self._long_bucket
        return next((bucket for bucket in self._buckets if bucket >= length), self._buckets[-1])

    def _rows(self, bucket: int) -> int:
        """Signals of a bucket that make a batch: for each device as many as fit the longest bucket, a power of two."""
        fit = max(1, self._buckets[-1] // bucket)
        each = 1 if parallel.runs_on_cpu() else 2 ** (fit.bit_length() - 1)
        return each * parallel.local_device_count()

    def _enhance(self, signals: list[np.ndarray], levels: list[float | None]) -> list[np.ndarray]:
        """A batch at the network's rate."""
        if not any(samples.any() for samples in signals):
            return [np.zeros_like(samples) for samples in signals]
        if self.config.model.causal:
            levels = [0.0] * len(signals)
        else:
            rate = self.config.stft.sample_rate_hz
            levels = [self.level(s, rate) if given is None else given for s, given in zip(signals, levels)]
        in_pieces = parallel.runs_on_cpu() or len(signals[0]) > self._buckets[-1]
        if len(signals) == 1 and in_pieces and not self._takes_whole:
            return [np.concatenate(list(self.blocks([signals[0][None]], levels[0])), axis=1)[0]]
        return self._enhance_padded(signals, levels)

    def _enhance_padded(self, signals: list[np.ndarray], levels: list[float]) -> list[np.ndarray]:
        """Signals of one bucket, in one call of one program."""
        lengths = np.array([len(samples) for samples in signals], np.int32)
        bucket = self._bucket(lengths.max())
        # A single signal leaves the other devices nothing to do.
        rows = 1 if len(signals) == 1 else self._rows(bucket)
        empty = rows - len(signals)
        padded = np.stack([np.pad(s, (0, bucket - len(s))) for s in signals] + [np.zeros(bucket, np.float32)] * empty)
        batch = padded, np.pad(lengths, (0, empty)), np.pad(np.array(levels, np.float32), (0, empty))
        if rows == 1:
            call = functools.partial(enhance_padded, self.config, self.variables, *batch)
        else:
            call = functools.partial(_enhance_rows(self.config), self._variables_everywhere, batch)
        out = np.asarray(self._once_compiled(("padded", bucket, rows), call))
        return [row[:length] for row, length in zip(out, lengths)]


def _usable(samples: Any) -> np.ndarray:
    """A signal as float32 [N]; a `ValueError` says why it is none."""
    samples = np.asarray(samples)
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"samples must be [N] with N >= 1, not of shape {samples.shape}")
    if np.iscomplexobj(samples):
        raise ValueError("samples must be real, not complex")
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise ValueError("samples must be finite: there are NaN or infinite ones")
    return samples


def _check_rate_and_levels(sample_rate_hz: int, levels: Sequence[float] | None, signals: int) -> None:
    if not sample_rate_hz > 0:
        raise ValueError(f"sample_rate_hz={sample_rate_hz}: must be positive")
    if levels is None:
        return
    if len(levels) != signals:
        raise ValueError(f"{len(levels)} levels for {signals} signals: give each signal one")
    for level in levels:
        # 0 is the level of silence.
        if not 0 <= level < math.inf:
            raise ValueError(f"level={level}: must be finite and not negative")


def enhance(
    config: Config, variables: Any, samples: jax.Array | np.ndarray, sample_rate_hz: int = 16000
) -> jax.Array | np.ndarray:
    """Enhances a signal, or several of one length.

    Called with arrays, it takes signals of any length with the few programs of an `Enhancer`, whose limit on the length
    for transformer layers holds (`Enhancer.check_seconds`). Inside jit, vmap or grad
    it is traced as one pass over the whole.

    Args:
      config: settings of the network.
      variables: its parameters.
      samples: float [N] or [B, N], full scale 1, finite; each row of [B, N] is a signal of its own.
      sample_rate_hz: of `samples`; under a transformation it must be the config's.

    Returns:
      float32 of the same shape and rate; a numpy array, or under a transformation what that gives.

    Raises:
      ValueError: arguments that are none of these; what is not finite is found outside of transformations alone.
      UserError: too long for a network with transformer layers.
    """
    if jnp.ndim(samples) not in (1, 2) or jnp.size(samples) == 0:
        raise ValueError(f"samples must be [N] or [B, N] with N >= 1, not of shape {jnp.shape(samples)}")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((variables, samples))):
        if sample_rate_hz != config.stft.sample_rate_hz:
            raise ValueError(f"under jit or vmap, resample to {config.stft.sample_rate_hz} Hz first")
        rows = jnp.atleast_2d(jnp.asarray(samples, jnp.float32))
        return enhance_padded(config, variables, rows, jnp.full(len(rows), rows.shape[1])).reshape(samples.shape)
    # Compiled programs belong to the functions, not to an Enhancer: making one only copies the parameters.
    samples = np.asarray(samples)
    enhanced = Enhancer(config, variables).many(list(np.atleast_2d(samples)), sample_rate_hz)
    return np.stack(enhanced).reshape(samples.shape)
