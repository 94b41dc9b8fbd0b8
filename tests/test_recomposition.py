import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tone_in_noise

from saf_jax import audio
from saf_jax.recomposition import Fifo, HighBandGain, Recomposer, Resampler, Treatment

NETWORK = 16000
ALL = Treatment()


def recompose(samples, rate, network, treatment=ALL, cuts=()):
    """Runs a recording [n, channels] through, cut where told; `network` maps its input [channels, m] to its output."""
    recomposer = Recomposer(rate, NETWORK, samples.shape[1], treatment)
    pieces = [recomposer.give(network(recomposer.take(piece))) for piece in np.split(samples, cuts)]
    pieces.append(recomposer.give(network(recomposer.take(samples[:0], last=True))))
    return np.concatenate([*pieces, recomposer.end()])


def unchanged(inputs):
    return inputs


def stereo(length):
    return np.stack([tone_in_noise(length, 1), tone_in_noise(length, 2)], axis=1)


@given(
    put=st.lists(st.integers(0, 9), max_size=20),
    taken=st.lists(st.integers(0, 15), max_size=20),
)
def test_a_fifo_gives_what_it_got_in_order(put, taken):
    fifo, count = Fifo(1), 0
    samples = np.arange(sum(put), dtype=np.float32)[:, None]
    for piece in np.split(samples, np.cumsum(put)):
        fifo.put(piece)
    for want in taken:
        got = fifo.take(want)
        np.testing.assert_array_equal(got, samples[count : count + want])
        count += len(got)
        assert fifo.length == len(samples) - count


@settings(max_examples=40, deadline=None)
@given(
    rates=st.sampled_from([(8000, 16000), (44100, 16000), (16000, 11025), (48000, 16000), (16000, 16000)]),
    length=st.integers(1, 6000),
    cuts=st.lists(st.integers(0, 6000), max_size=5),
)
def test_resampling_in_pieces_is_resampling_at_once(rates, length, cuts):
    samples = stereo(length)
    stream = Resampler(*rates, 2)
    pieces = [stream.push(piece) for piece in np.split(samples, sorted(cuts))]
    got = np.concatenate([*pieces, stream.push(samples[:0], last=True)])
    np.testing.assert_array_equal(got, audio.resample(samples, *rates))


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([4000, 8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    length=st.integers(1, 20000),
    cuts=st.lists(st.integers(0, 20000), max_size=4),
    treatment=st.builds(
        Treatment,
        mix=st.sampled_from([0.0, 0.3, 1.0]),
        max_attenuation_db=st.sampled_from([None, 0.0, 12.0]),
        high_band=st.sampled_from(["keep", "drop"]),
    ),
)
def test_rate_and_length_stay_and_cuts_change_nothing(rate, length, cuts, treatment):
    samples = stereo(length)
    whole = recompose(samples, rate, lambda x: 0.5 * x, treatment)
    assert whole.shape == samples.shape
    assert whole.dtype == np.float32
    np.testing.assert_allclose(
        recompose(samples, rate, lambda x: 0.5 * x, treatment, sorted(cuts)), whole, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
def test_a_network_that_changes_nothing_gives_back_the_recording(rate):
    samples = stereo(rate // 2)
    np.testing.assert_allclose(recompose(samples, rate, unchanged), samples, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_mix_and_limit_are_shares_of_the_recording(rate):
    samples = stereo(rate // 2)
    np.testing.assert_array_equal(recompose(samples, rate, np.zeros_like, Treatment(mix=0)), samples)
    np.testing.assert_array_equal(recompose(samples, rate, np.zeros_like, Treatment(max_attenuation_db=0)), samples)
    assert np.abs(recompose(samples, rate, np.zeros_like, Treatment(high_band="drop"))).max() < 1e-6
    for treatment, left in [
        (Treatment(mix=0.25, high_band="drop"), 0.75),
        (Treatment(max_attenuation_db=20, high_band="drop"), 0.1),
        (Treatment(mix=0.5, max_attenuation_db=20, high_band="drop"), 0.55),
    ]:
        np.testing.assert_allclose(recompose(samples, rate, np.zeros_like, treatment), left * samples, atol=1e-6)


def tone(hz, rate, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def rms(samples):
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


@pytest.mark.parametrize(("high_band", "left"), [("keep", 0.2), ("drop", 0.0)])
def test_the_high_band_takes_the_gain_of_the_highest_band_that_the_network_sees(high_band, left):
    """The network here leaves what is low and attenuates what it sees high to a fifth."""
    rate = 48000
    low, seen, unseen = 0.3 * tone(300, rate), 0.1 * tone(6000, rate), 0.2 * tone(15000, rate)
    at_network = 0.3 * tone(300, NETWORK) + 0.1 * 0.2 * tone(6000, NETWORK)
    recomposer = Recomposer(rate, NETWORK, 1, Treatment(high_band=high_band))
    inputs = recomposer.take((low + seen + unseen)[:, None])
    inputs = np.concatenate([inputs, recomposer.take(np.zeros((0, 1), np.float32), last=True)], axis=1)
    assert inputs.shape == (1, len(at_network))
    got = np.concatenate([recomposer.give(at_network[None]), recomposer.end()])[:, 0]
    inner = slice(rate // 10, -rate // 10)
    wanted = low + 0.2 * seen + left * unseen
    assert rms(got[inner] - wanted[inner]) < 0.01 * rms(unseen)


def test_the_gain_follows_in_time_and_is_never_above_one():
    before = 0.1 * np.random.default_rng(0).standard_normal((16000, 2)).astype(np.float32)
    after = before * np.where(np.arange(16000) < 8000, [[3.0], [0.5]], [[0.1], [1.0]]).T.astype(np.float32)
    gain = HighBandGain(NETWORK, 2)
    gain.push(before, after, last=True)
    gains = gain.at(0, 48000, 48000)
    assert gains.shape == (48000, 2)
    np.testing.assert_allclose(gains[2000:22000], np.tile([1.0, 0.5], (20000, 1)), rtol=1e-4)
    np.testing.assert_allclose(gains[26000:], np.tile([0.1, 1.0], (22000, 1)), rtol=1e-4)


def test_digital_silence_has_gain_one_and_no_sound():
    samples = np.zeros((4800, 1), np.float32)
    assert not recompose(samples, 48000, unchanged).any()
