"""Signals that come piece by piece: pure functions over an explicit state."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saf_jax.config import Config, ModelConfig, STFTConfig
from saf_jax.errors import UserError
from saf_jax.level import LOUDEST, running_level
from saf_jax.model.delay import check_pieces, network_delay
from saf_jax.model.net import SAFNet, variable_shapes
from saf_jax.signal_path import is_sounding, normalise, restore
from saf_jax.transforms import frame_spectra, overlap_add, window_sums


class StreamState(NamedTuple):
    """All that is known of the samples given so far. Each row is a signal of its own.

    Attributes:
      hops: int32 [B], hops seen; no longer counted once the signal's start is left behind.
      left: int32 [B], samples from here to the signal's end, negative beyond it; `UNENDING` while the end is not known.
      history: float32 [B, samples], the last samples, which later windows reach back to.
      level: float32 [B, 2], the state of `running_level`; for networks that are not causal [B, 1], the level.
      sounding: bool [B, frames], which of the frames that the network is yet to give are not digital silence.
      past: the last input frames of every depth-wise convolution, see `DepthwiseConv`.
      tail: float32 [B, window / hop - 1, hop_samples], the part of the output that later frames still add to.
    """

    hops: jax.Array
    left: jax.Array
    history: jax.Array
    level: jax.Array
    sounding: jax.Array
    past: Any
    tail: jax.Array


UNENDING = 2**30


def delay_samples(config: Config) -> int:
    """How many samples the output of `advance` lags behind its input.

    A hop more of input is needed before any of it can be worked on, so the latency of a causal network is the window
    (half a hop more where half a window is not whole hops).

    Raises:
      UserError: the network needs the whole signal.
    """
    check_pieces(config.model)
    return _history_samples(config.stft) + network_delay(config.model) * config.stft.hop_samples


def _history_samples(stft: STFTConfig) -> int:
    return stft.window_samples - stft.hop_samples + stft.window_samples // 2 % stft.hop_samples


def start(config: Config, batch: int, level: jax.Array | None = None) -> StreamState:
    """The state before the first sample of `batch` signals, whose ends are not known.

    Args:
      config: settings of the network.
      batch: number of signals B.
      level: float [B], what a network that is not causal divides the signals by.

    Raises:
      UserError: the network needs the whole signal.
    """
    stft, model = config.stft, config.model
    check_pieces(model)
    past = {name: of_one for name, of_one in variable_shapes(model, stft.bins).items() if name == "past"}
    # Numpy's zeros: jax would compile a program for each shape.
    return StreamState(
        hops=np.zeros(batch, np.int32),
        left=np.full(batch, UNENDING, np.int32),
        history=np.zeros((batch, _history_samples(stft)), np.float32),
        level=np.zeros((batch, 2), np.float32) if model.causal else np.asarray(level, np.float32)[:, None],
        sounding=np.zeros((batch, network_delay(model)), bool),
        past=jax.tree.map(lambda leaf: np.zeros((batch, *leaf.shape[1:]), leaf.dtype), past),
        tail=np.zeros((batch, stft.window_samples // stft.hop_samples - 1, stft.hop_samples), np.float32),
    )


def causal_hint(model: ModelConfig) -> str:
    """What to take instead of this network, which looks ahead: one clause, for a user's error."""
    from saf_jax.pretrained import load_weights, shipped_weights

    causal = [name for name in shipped_weights() if load_weights(name)[0].model.causal]
    settings = "model.causal=true" + (" model.layer_kind=saf" if model.layer_kind == "transformer" else "")
    return f"take a causal one ({', '.join(causal) or f'trained with {settings}'})"


@functools.partial(jax.jit, static_argnames="config")
def advance(
    config: Config, variables: Any, state: StreamState, samples: jax.Array, levels: Any = None
) -> tuple[StreamState, jax.Array]:
    """Takes the next samples of each signal and gives as many enhanced ones, `delay_samples` behind.

    Args:
      config: settings of the network; static under jit.
      variables: of `SAFNet(config.model)`.
      state: from `start` or from the call before. Before the call that holds a signal's last samples, put their number
        into `left`; a causal network does without, as long as zeros follow the end.
      samples: float32 [B, N], N a multiple of `hop_samples`; those that are not finite count as 0.
      levels: what `common_levels` gives for these samples; None: each signal's own.

    Returns:
      The new state and float32 [B, N]. All outputs joined, without the first `delay_samples`, equal what
      `enhance_padded` makes of all inputs joined.
    """
    stft, late = config.stft, network_delay(config.model)
    hop, ratio = stft.hop_samples, stft.window_samples // stft.hop_samples
    heard, index, inside = _frames(config, state, samples)
    hops = index.shape[-1]
    spectrum = frame_spectra(heard[:, : (hops + ratio - 1) * hop], stft)
    if not config.model.causal:
        level, level_state = state.level, state.level
    elif levels is None:
        level, level_state = running_level(spectrum, stft, state.level, inside)
    else:
        level, level_state = levels
    noisy = normalise(spectrum, level[..., None], config)
    estimate, past = SAFNet(config.model).apply({**variables, **state.past}, noisy, inside, mutable=["past"])
    # From here on frames are those that the network gives.
    index = index - late
    sounding = jnp.concatenate([state.sounding, is_sounding(noisy)], axis=-1)
    rows = overlap_add(restore(estimate * sounding[:, :hops, None], level[..., None], config), stft)
    rows = jnp.concatenate([rows[:, : ratio - 1] + state.tail, rows[:, ratio - 1 :]], axis=1)
    done = (rows[:, :hops] / window_sums(index, None, stft)).reshape(samples.shape)
    # What lies before the signal's first sample is half a window of nothing.
    position = (index[..., None] * hop + jnp.arange(hop)).reshape(samples.shape)
    new = StreamState(
        hops=jnp.minimum(state.hops + hops, 2 * ratio + late),
        left=jnp.where(state.left == UNENDING, UNENDING, jnp.maximum(state.left - samples.shape[-1], -UNENDING)),
        history=heard[:, hops * hop :],
        level=level_state,
        sounding=sounding[:, hops:],
        past=past,
        tail=rows[:, hops:],
    )
    return new, jnp.where(position >= stft.window_samples // 2, done, 0.0)


def _frames(config: Config, state: StreamState, samples: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples with their history, and of each frame that begins in them: its index and whether it is the signal's."""
    hop, ratio = config.stft.hop_samples, config.stft.window_samples // config.stft.hop_samples
    hops = jnp.arange(samples.shape[-1] // hop)
    # The state never forgets a power that is not finite: one such sample would silence all that follow.
    samples = jnp.where(jnp.abs(samples) <= LOUDEST, samples, 0.0)
    heard = jnp.concatenate([state.history, samples], axis=-1)
    # Frames of the signal are those centred on or after its first sample whose windows touch it.
    index = state.hops[:, None] + hops - (ratio - 1) // 2
    inside = (index >= 0) & (hops * hop - state.history.shape[-1] < state.left[:, None])
    return heard, index, inside


@functools.partial(jax.jit, static_argnames="config")
def common_levels(config: Config, states: Sequence[StreamState], samples: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The running level of all channels of a recording together: what keeps their balance in a causal network.

    Args:
      config: settings of the network.
      states: of each channel, one signal each.
      samples: float32 [C, N], the next samples of the channels.

    Returns:
      The level of each frame, float32 [1, T], and its state after them, for `advance` with each channel's state.
    """
    ratio = config.stft.window_samples // config.stft.hop_samples
    heard, _, inside = zip(*(_frames(config, state, row[None]) for state, row in zip(states, samples)))
    hops = inside[0].shape[-1] + ratio - 1
    spectrum = frame_spectra(jnp.concatenate(heard)[:, : hops * config.stft.hop_samples], config.stft)
    loudness = jnp.sqrt(jnp.mean(jnp.abs(spectrum) ** 2, axis=0, keepdims=True))
    return running_level(loudness, config.stft, states[0].level, inside[0])


def stream(config: Config, variables: Any) -> tuple[Callable, Callable]:
    """A causal network for live signals: two pure functions.

    The latency is the window of the transform (20 ms): each call gives as many samples as it takes, `window_samples -
    hop_samples` behind, and needs a hop to begin with. All outputs joined, without that delay, equal the result for
    the whole signal at once.

    Args:
      config: settings of the network; `model.causal` must be true.
      variables: its parameters.

    Returns:
      `init(batch=None)`, the state before the first sample of one signal or of `batch` signals, and `step(state,
      samples)` -> (state, enhanced), with samples and enhanced float32 [N] or [B, N] at the config's rate, N any
      multiple of `hop_samples`; each N is compiled once. Samples that are not finite count as 0. Both work under jit,
      vmap and scan.

    Raises:
      UserError: the network is not causal.

    Example:
      >>> init, step = saf_jax.stream(config, variables)
      >>> state, enhanced = jax.lax.scan(step, init(), samples.reshape(-1, config.stft.hop_samples))
    """
    if not config.model.causal:
        # Besides looking ahead, it needs the level of the whole signal.
        raise UserError(f"this network looks ahead and cannot stream: {causal_hint(config.model)}")
    template = start(config, 1)
    variables = jax.device_put(variables)

    def init(batch: int | None = None) -> StreamState:
        if batch is None:
            return jax.tree.map(lambda leaf: leaf[0], template)
        return jax.tree.map(lambda leaf: np.repeat(leaf, batch, axis=0), template)

    def step(state: StreamState, samples: jax.Array) -> tuple[StreamState, jax.Array]:
        # JAX on a CPU reads a numpy array where it lies, and later: by then its owner may have filled it anew.
        samples = samples.copy() if isinstance(samples, np.ndarray) else samples
        return _step(config, variables, state, samples)

    return init, step


@functools.partial(jax.jit, static_argnames="config")
def _step(config: Config, variables: Any, state: StreamState, samples: jax.Array) -> tuple[StreamState, jax.Array]:
    """`advance` for [N] or [B, N]."""
    hop = config.stft.hop_samples
    if samples.ndim not in (1, 2) or samples.shape[-1] == 0 or samples.shape[-1] % hop:
        raise ValueError(f"samples must be [N] or [B, N] with N a multiple of {hop}, not of shape {samples.shape}")
    if samples.ndim == 2:
        return advance(config, variables, state, samples)
    state, enhanced = advance(config, variables, jax.tree.map(lambda leaf: leaf[None], state), samples[None])
    return jax.tree.map(lambda leaf: leaf[0], state), enhanced[0]
