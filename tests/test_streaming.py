import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from networks import tone_in_noise

import saf_jax
from saf_jax import pretrained
from saf_jax.config import STFTConfig
from saf_jax.enhancement import enhance_padded
from saf_jax.errors import UserError
from saf_jax.info import describe
from saf_jax.pretrained import save_weights
from saf_jax.streaming import advance, common_levels, delay_samples, start

HOP = networks.STFT.hop_samples
WINDOWS = {"half": networks.STFT, "quarter": STFTConfig(1600, 32, 8), "third": STFTConfig(1600, 48, 16)}
CONFIG = networks.least(causal=True, attention_kernel=3, outputs="both")

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def variables():
    return networks.net_variables(CONFIG)


@pytest.fixture(scope="module")
def signal():
    """Silent at first, then quiet, then loud; no whole number of hops."""
    samples = tone_in_noise(1003)
    samples[:40] = 0
    samples[:400] *= 0.01
    return samples


@pytest.fixture(scope="module")
def wanted(variables, signal):
    return whole(CONFIG, variables, signal)


def whole(config, variables, samples, level=None):
    lengths = np.array([samples.shape[-1]] * len(np.atleast_2d(samples)), np.int32)
    return np.asarray(enhance_padded(config, variables, np.atleast_2d(samples), lengths, level)).reshape(samples.shape)


def hops_of(samples, config):
    """The signal [..., N], and as many zeros as bring out its end, in hops [n, ..., hop_samples]."""
    hop = config.stft.hop_samples
    zeros = delay_samples(config) + -(samples.shape[-1] + delay_samples(config)) % hop
    padded = np.concatenate([samples, np.zeros((*samples.shape[:-1], zeros), np.float32)], axis=-1)
    return np.moveaxis(padded.reshape(*samples.shape[:-1], -1, hop), -2, 0)


def joined(frames, config, length):
    """Outputs [n, ..., hop_samples] without the delay: [..., length]."""
    frames = np.moveaxis(np.asarray(frames), 0, -2)
    return frames.reshape(*frames.shape[:-2], -1)[..., delay_samples(config) :][..., :length]


@pytest.mark.parametrize("window", WINDOWS)
def test_hop_by_hop_equals_the_whole_signal(window, signal):
    config = networks.least(causal=True, attention_kernel=3, outputs="both", stft=WINDOWS[window])
    variables = networks.net_variables(config)
    init, step = saf_jax.stream(config, variables)
    _, frames = jax.lax.scan(step, init(), hops_of(signal, config))
    expected = whole(config, variables, signal)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(joined(frames, config, len(signal)), expected, atol=1e-5)


def test_every_part_of_a_network_streams(signal):
    config = networks.config(causal=True)
    variables = networks.net_variables(config)
    init, step = saf_jax.stream(config, variables)
    _, frames = jax.lax.scan(step, init(), hops_of(signal[:500], config))
    np.testing.assert_allclose(joined(frames, config, 500), whole(config, variables, signal[:500]), atol=1e-5)


def test_step_by_step_with_several_hops_a_step(variables, signal, wanted):
    init, step = saf_jax.stream(CONFIG, variables)
    state, got = init(), []
    hops = hops_of(signal, CONFIG)
    for first, stop in ((0, 1), (1, 2), (2, 6), (6, 10), (10, len(hops))):
        state, out = step(state, hops[first:stop].reshape(-1))
        assert out.dtype == np.float32 and out.shape == ((stop - first) * HOP,)
        got.append(out)
    np.testing.assert_allclose(joined([np.concatenate(got)], CONFIG, len(signal)), wanted, atol=1e-5)


def test_rows_are_signals_of_their_own_and_vmap_is_the_same(variables, signal, wanted):
    init, step = saf_jax.stream(CONFIG, variables)
    rows = np.stack([signal, 3 * tone_in_noise(len(signal), 1)])
    hops = hops_of(rows, CONFIG)
    _, frames = jax.lax.scan(step, init(2), hops)
    expected = np.stack([wanted, whole(CONFIG, variables, rows[1])])
    np.testing.assert_allclose(joined(frames, CONFIG, len(signal)), expected, atol=1e-5)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), init())
    _, mapped = jax.lax.scan(jax.vmap(step), states, hops)
    np.testing.assert_allclose(mapped, frames, atol=1e-5)


def test_latency_is_the_window(variables, signal):
    """A sample's enhanced version is there with the hop that ends a window after it began, and not changed later."""
    assert delay_samples(CONFIG) + HOP == CONFIG.stft.window_samples
    assert describe(CONFIG)["algorithmic_latency_ms"] == 1000 * CONFIG.stft.window_samples / 1600 == 20
    init, step = saf_jax.stream(CONFIG, variables)

    def outputs(samples):
        return np.asarray(jax.lax.scan(step, init(), hops_of(samples, CONFIG))[1])

    changed = signal.copy()
    changed[800:] += 0.1
    first, second = outputs(signal), outputs(changed)
    assert (first[: 800 // HOP] == second[: 800 // HOP]).all()
    assert (first[800 // HOP] != second[800 // HOP]).any()


def test_nothing_comes_before_the_signal(variables, signal):
    init, step = saf_jax.stream(CONFIG, variables)
    _, frames = jax.lax.scan(step, init(), hops_of(signal[500:], CONFIG))
    assert not np.asarray(frames).reshape(-1)[: delay_samples(CONFIG)].any()


def test_one_sample_that_is_no_number_does_not_silence_what_follows(variables, signal):
    init, step = saf_jax.stream(CONFIG, variables)
    hop = CONFIG.stft.hop_samples
    for bad in (np.nan, np.inf, 1e30):
        chunks = signal[: 12 * hop].reshape(-1, hop).copy()
        chunks[2, 3] = 0
        zeroed = jax.lax.scan(step, init(), chunks)[1]
        chunks[2, 3] = bad
        np.testing.assert_array_equal(jax.lax.scan(step, init(), chunks)[1], zeroed)


def test_a_state_can_be_used_again(variables, signal):
    init, step = saf_jax.stream(CONFIG, variables)
    hop = signal[600 : 600 + HOP]
    state, _ = step(init(), hop)
    first, again = step(state, hop), step(state, hop)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_the_start_is_forgotten_but_not_the_place(variables):
    """Hours of audio must not overflow the count of hops."""
    init, step = saf_jax.stream(CONFIG, variables)
    state = init()
    for _ in range(8):
        state, _ = step(state, np.ones(HOP, np.float32))
    hops = int(state.hops)
    state, _ = step(state, np.ones(HOP, np.float32))
    assert int(state.hops) == hops


def test_channels_that_share_a_level_keep_their_balance(variables, signal):
    def enhanced(channels):
        states, got = [start(CONFIG, 1)] * 2, []
        for hop in hops_of(channels, CONFIG):
            levels = common_levels(CONFIG, states, hop)
            pairs = [advance(CONFIG, variables, state, row[None], levels) for state, row in zip(states, hop)]
            states = [state for state, _ in pairs]
            got.append(np.concatenate([out for _, out in pairs]))
        return joined(got, CONFIG, channels.shape[1])

    alike = enhanced(np.stack([signal, signal])[:, :600])
    np.testing.assert_array_equal(alike[0], alike[1])
    np.testing.assert_allclose(alike[0], whole(CONFIG, variables, signal[:600]), atol=1e-5)
    # Silence takes half of the common power: the loud channel is then seen louder by 3 dB than alone.
    beside_silence = enhanced(np.stack([signal, 0 * signal])[:, :600])
    assert not beside_silence[1].any()
    assert np.abs(beside_silence[0] - alike[0]).max() > 1e-3


def test_a_network_that_looks_ahead_is_refused_with_what_to_take(tmp_path, monkeypatch, variables):
    ahead = networks.least()
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(pretrained, "__file__", str(tmp_path / "pretrained.py"))
    with pytest.raises(UserError, match=r"^this network looks ahead .*trained with model.causal=true"):
        saf_jax.stream(ahead, networks.net_variables(ahead))
    for name, config, values in (("live", CONFIG, variables), ("file", ahead, networks.net_variables(ahead))):
        save_weights(tmp_path / "weights" / f"{name}.safetensors", config, values)
    with pytest.raises(UserError, match=r"take a causal one \(live\)$"):
        saf_jax.stream(ahead, networks.net_variables(ahead))


@pytest.mark.parametrize("shape", [(HOP + 1,), (0,), (), (1, 1, HOP)])
def test_samples_that_are_no_hops_are_refused(variables, shape):
    init, step = saf_jax.stream(CONFIG, variables)
    with pytest.raises(ValueError, match=r"N a multiple of 16"):
        step(init(), np.zeros(shape, np.float32))


def test_a_buffer_may_be_filled_anew_as_soon_as_the_step_returns(variables, signal):
    """JAX on a CPU reads aligned numpy arrays where they lie, and later."""
    init, step = saf_jax.stream(CONFIG, variables)
    hops = np.asarray(signal[: 40 * HOP]).reshape(-1, HOP)
    state, wanted = init(), []
    for hop in hops:
        state, enhanced = step(state, jnp.asarray(hop))
        wanted.append(np.asarray(enhanced))
    raw = np.zeros(HOP * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    buffer = raw[start : start + 4 * HOP].view(np.float32)
    state, got = init(), []
    for hop in hops:
        buffer[:] = hop
        state, enhanced = step(state, buffer)
        buffer[:] = np.nan
        got.append(enhanced)
    np.testing.assert_allclose(np.stack(got), np.stack(wanted), atol=1e-6)


@pytest.mark.parametrize("window, hop", [(48, 16), (40, 8), (32, 16)])
def test_the_latency_told_is_that_of_any_window(window, hop):
    config = dataclasses.replace(CONFIG, stft=dataclasses.replace(CONFIG.stft, window_samples=window, hop_samples=hop))
    assert describe(config)["algorithmic_latency_ms"] == 1000 * (delay_samples(config) + hop) / 1600
