import threading

import jax
import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tone_in_noise

import saf_jax
from saf_jax.enhancement import BUCKET_SECONDS, Enhancer, enhance_padded, plan_blocks
from saf_jax.model.cost import context_frames

RATE = networks.STFT.sample_rate_hz
# All that mixes time, in a network that compiles fast.
LEAN = {"streams": "complex", "attention_kernel": 3, "dense_dilations": (2,), "tcn_dilations": (1,)}


@pytest.fixture(scope="module")
def least():
    """The smallest network and its enhancer."""
    config = networks.least()
    return Enhancer(config, networks.net_variables(config))


def whole(enhancer, samples):
    """The signal in one pass, without padding or blocks."""
    length = np.array([len(samples)], np.int32)
    return np.asarray(enhance_padded(enhancer.config, enhancer.variables, samples[None], length))[0]


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(
    "changes",
    [{"norm": "layer"}, {"norm": "group"}, {"norm": "instance"}, {"norm": "batch"}, {"causal": True}],
    ids=str,
)
def test_padding_and_company_change_nothing(changes):
    config = networks.least(attention_kernel=3, outputs="both", **changes)
    variables = networks.net_variables(config)
    signals = [tone_in_noise(777, 1), 0.01 * tone_in_noise(1400, 2), tone_in_noise(1, 3)]
    lengths = np.array([len(signal) for signal in signals], np.int32)
    together = np.stack([np.pad(signal, (0, 1400 - len(signal))) for signal in signals])
    in_company = np.asarray(enhance_padded(config, variables, together, lengths))
    alone = np.asarray(enhance_padded(config, variables, signals[0][None], lengths[:1]))[0]
    assert in_company.dtype == np.float32
    assert np.abs(alone).max() > 0.1
    np.testing.assert_allclose(in_company[0, :777], alone, atol=1e-5)
    for row, length in zip(in_company, lengths):
        assert not row[length:].any()


def test_at_most_six_programs_for_any_lengths(least):
    lengths = np.random.default_rng(0).uniform(0.3, 30, 60) * RATE
    compiled = []

    def listen(event, seconds, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for length in lengths.astype(int):
            out = least(tone_in_noise(length), RATE)
            assert out.shape == (length,)
            assert out.dtype == np.float32
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert 1 <= len(compiled) <= 6, compiled


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("length", [1, 2400, 2401])
def test_padded_to_a_common_length_it_equals_one_pass(least, length):
    samples = tone_in_noise(length)
    np.testing.assert_allclose(least(samples, RATE), whole(least, samples), atol=1e-5)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("changes", [{}, {**LEAN, "causal": True}], ids=["all parts", "causal"])
def test_a_long_signal_in_blocks_equals_one_pass(changes):
    config = networks.config(**changes)
    enhancer = Enhancer(config, networks.net_variables(config))
    samples = tone_in_noise(int(2.9 * BUCKET_SECONDS[-1] * RATE) + 5)
    samples[40000:50000] *= 1e-3  # a block whose own level is another
    inside = np.s_[31900:32100]  # where the first two blocks meet
    got, wanted = enhancer(samples, RATE), whole(enhancer, samples)
    np.testing.assert_allclose(got[inside], wanted[inside], atol=1e-5)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@given(
    length=st.integers(1, 5000),
    context=st.integers(0, 20).map(lambda n: 10 * n),
    extra=st.integers(1, 40).map(lambda n: 10 * n),
)
@settings(max_examples=200)
def test_blocks_give_each_sample_once_with_its_context(length, context, extra):
    block = 2 * context + extra
    blocks = plan_blocks(length, block, context)
    kept = []
    for piece in blocks:
        assert 0 <= piece.start < piece.stop <= length
        assert piece.stop - piece.start <= block
        assert piece.start % 10 == 0
        assert piece.start == 0 or piece.keep_start - piece.start >= context
        assert piece.stop == length or piece.stop - piece.keep_stop >= context
        kept += range(piece.keep_start, piece.keep_stop)
    assert kept == list(range(length))


def test_blocks_are_long_enough_for_a_network_that_sees_far():
    config = networks.least(tcn_dilations=(1000, 2000))
    enhancer = Enhancer(config, None)
    context = max(context_frames(config.model)) * config.stft.hop_samples
    blocks = plan_blocks(10 * context, enhancer._buckets[-1], enhancer._context)
    assert enhancer._context > context
    assert len(blocks) < 10


def test_calls_from_several_threads_agree_with_calls_in_turn(least):
    signals = [tone_in_noise(1000 + 700 * i, i) for i in range(8)]
    wanted = [least(signal, RATE) for signal in signals]
    shared = Enhancer(least.config, least.variables)
    got: dict[int, np.ndarray] = {}

    def work(first):
        for i in range(first, len(signals), 4):
            got[i] = shared(signals[i], RATE)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, signal in enumerate(wanted):
        np.testing.assert_array_equal(got[i], signal)


@pytest.mark.parametrize("rate", [800, 1600, 4410])
@pytest.mark.parametrize("length", [1, 2, 7, 1234])
def test_any_rate_and_length_come_back_as_they_were(least, rate, length):
    out = least(tone_in_noise(length), rate)
    assert out.shape == (length,)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


def test_another_rate_is_the_network_at_its_own_rate(least):
    time = np.arange(8820) / 4410
    tone = (0.3 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    at_own_rate = (0.3 * np.sin(2 * np.pi * 200 * np.arange(3200) / 1600)).astype(np.float32)
    wanted = saf_jax.audio.resample(least(at_own_rate, RATE), 1600, 4410)
    np.testing.assert_allclose(least(tone, 4410)[800:-800], wanted[800:-800], atol=2e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_silence_stays_exactly_silent(causal):
    """Whatever the Bias Decoder adds, and for a silent channel beside a loud one too: then the level is not 0."""
    config = networks.least(outputs="bias", causal=causal)
    enhancer = Enhancer(config, networks.net_variables(config))
    for rate in (RATE, 4410):
        for level in (None, 0.1):
            out = enhancer(np.zeros(1000), rate, level)
            assert out.shape == (1000,)
            assert out.dtype == np.float32
            assert not out.any()


def test_the_level_of_the_input_is_that_of_the_output(least):
    samples = tone_in_noise(2000)
    np.testing.assert_allclose(1000 * least(samples / 1000, RATE), least(samples, RATE), atol=2e-4)


def test_a_given_level_takes_the_place_of_the_own_one(least):
    first, second = tone_in_noise(2000, 1), 0.05 * tone_in_noise(2000, 2)
    own = least.level(second, RATE)
    np.testing.assert_allclose(least(second, RATE, own), least(second, RATE), atol=1e-6)
    shared = least(second, RATE, least.level(first, RATE))
    assert np.abs(shared - least(second, RATE)).max() > 1e-4


def test_level_is_that_of_the_loud_frames_at_any_rate(least):
    samples = np.concatenate([0.5 * np.ones(4410), np.zeros(4410)])
    for rate in (800, 1600, 44100):
        assert least.level(samples, rate) == pytest.approx(0.5, rel=0.02)
    assert least.level(np.zeros(100), RATE) == 0


@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_what_is_no_signal_is_refused(least, shape):
    with pytest.raises(ValueError, match=r"samples must be \[N\]"):
        least(np.zeros(shape), RATE)


def test_the_public_function_takes_one_signal_or_rows(least):
    rows = np.stack([tone_in_noise(900, 1), 0.1 * tone_in_noise(900, 2)])
    wanted = [least(row, RATE) for row in rows]
    one = saf_jax.enhance(least.config, least.variables, rows[0], sample_rate_hz=RATE)
    np.testing.assert_array_equal(one, wanted[0])
    both = saf_jax.enhance(least.config, least.variables, rows, sample_rate_hz=RATE)
    np.testing.assert_array_equal(both, wanted)
    np.testing.assert_array_equal(both, least.many(list(rows), RATE))
    with pytest.raises(ValueError, match=r"\[N\] or \[B, N\]"):
        saf_jax.enhance(least.config, least.variables, rows[None], sample_rate_hz=RATE)


def test_the_public_function_follows_the_variables_it_is_given(least):
    samples = tone_in_noise(900)
    for seed in (1, 2, 1):
        variables = networks.net_variables(least.config, seed)
        wanted = Enhancer(least.config, variables)(samples, RATE)
        np.testing.assert_array_equal(saf_jax.enhance(least.config, variables, samples, RATE), wanted)
