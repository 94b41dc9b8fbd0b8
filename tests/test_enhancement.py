import contextlib
import functools
import threading

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from networks import tone_in_noise

import saf_jax
from saf_jax import enhancement, parallel
from saf_jax.enhancement import Enhancer, enhance, enhance_padded

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


@contextlib.contextmanager
def compilations():
    """The programs that are compiled inside."""
    compiled = []

    def listen(event, seconds, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_one_program_for_any_length_on_a_cpu(least):
    enhancer = Enhancer(least.config, least.variables)
    enhancer(tone_in_noise(1000), RATE)
    with compilations() as compiled:
        for length in (np.random.default_rng(0).uniform(0.01, 5, 30) * RATE).astype(int):
            out = enhancer(tone_in_noise(length), RATE)
            assert out.shape == (length,)
            assert out.dtype == np.float32
    assert not compiled


def test_padded_to_a_few_lengths_elsewhere(least, monkeypatch):
    signals = [tone_in_noise(length, length) for length in (1, 2000, 2100, 2399, 2400, 2401, 4000, 4001, 40000)]
    wanted = [least(signal, RATE) for signal in signals]
    monkeypatch.setattr(parallel, "runs_on_cpu", lambda: False)
    monkeypatch.setattr(parallel, "local_device_count", lambda: 1)
    enhancer = Enhancer(least.config, least.variables)
    with compilations() as compiled:
        together = enhancer.many(signals, RATE)
    for expected, out in zip(wanted, together):
        np.testing.assert_allclose(out, expected, atol=1e-5)
    # Of five signals of the first length (a batch of eight), two of the second, one of the third, one that is longer.
    assert len(compiled) <= 4
    with compilations() as compiled:
        enhancer.many([tone_in_noise(length) for length in (1000, 1001, 1002, 3000, 3001, 5000, 50000)], RATE)
    assert not compiled


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("changes", [{}, {"causal": True}], ids=["all parts", "causal"])
def test_a_long_signal_in_pieces_of_any_size_equals_one_pass(changes):
    config = networks.config(**changes)
    enhancer = Enhancer(config, networks.net_variables(config))
    samples = tone_in_noise(6005)
    samples[2500:3500] *= 1e-3  # longer than a piece, and its own level is another
    wanted = whole(enhancer, samples)
    np.testing.assert_allclose(enhancer(samples, RATE), wanted, atol=1e-5)
    cuts = np.cumsum(np.random.default_rng(0).integers(0, 1500, 20)).clip(max=len(samples))
    pieces = np.split(np.stack([samples, samples, np.zeros_like(samples)]), cuts, axis=1)
    level = None if config.model.causal else enhancer.level(samples, RATE)
    out = np.concatenate(list(enhancer.blocks(iter(pieces), level)), axis=1)
    np.testing.assert_array_equal(out[0], out[1])
    assert not out[2].any()
    if not config.model.causal:  # whose level is that of all three channels
        np.testing.assert_allclose(out[0], wanted, atol=1e-5)


def test_blocks_of_nothing(least):
    assert list(least.blocks([], 0.1)) == []
    assert np.concatenate(list(least.blocks([np.zeros((2, 0), np.float32)], 0.1)), axis=1).shape == (2, 0)
    with pytest.raises(ValueError, match="needs the level"):
        next(least.blocks([np.zeros((1, 10), np.float32)]))


def test_a_long_recording_comes_piece_by_piece(least):
    """What is done is given away before more is asked for."""
    asked = 0

    def pieces():
        nonlocal asked
        for _ in range(200):
            asked += 1
            yield np.ones((1, 100), np.float32)

    done = 0
    for out in least.blocks(pieces(), 0.5):
        done += out.shape[1]
        assert 100 * asked - done <= 2 * least._piece + 100
    assert done == 20000


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


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_through_silence_are_finite(causal):
    config = networks.least(causal=causal)
    variables = networks.net_variables(config)
    rows = np.random.default_rng(0).normal(0, 0.1, (3, 900)).astype(np.float32)
    rows[0], rows[1, :500] = 0, 0

    def energy(samples):
        return jnp.sum(enhance(config, variables, samples, config.stft.sample_rate_hz) ** 2)

    for gradient in (jax.grad(energy)(rows), jax.jit(jax.grad(energy))(rows)):
        assert np.isfinite(gradient).all() and np.abs(gradient[2]).max() > 0


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("causal", [False, True])
def test_one_sample_that_is_no_number_does_not_spoil_the_blocks(causal):
    config = networks.least(causal=causal)
    enhancer = Enhancer(config, networks.net_variables(config))
    samples = np.random.default_rng(0).normal(0, 0.1, (2, 900)).astype(np.float32)
    samples[1, 40] = 0
    zeroed = np.concatenate(list(enhancer.blocks([samples], 0.1)), axis=1)
    samples[1, 40] = np.nan
    np.testing.assert_array_equal(np.concatenate(list(enhancer.blocks([samples], 0.1)), axis=1), zeroed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate_hz": 0}, "sample_rate_hz=0"),
        ({"levels": [0.1]}, "1 levels for 2 signals"),
        ({"levels": [0.1, np.nan]}, "level=nan"),
        ({"signals": [np.ones(9), np.array([0.0, np.nan])]}, "must be finite"),
        ({"signals": [np.ones(9), np.ones(9) * 1j]}, "must be real"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(least, change, message):
    good = {"signals": [np.ones(9), np.ones(9)], "sample_rate_hz": 16000, "levels": [0.1, 0.2]}
    with pytest.raises(ValueError, match=message):
        least.many(**(good | change))
    with pytest.raises(ValueError, match=r"not of shape \(0, 100\)"):
        enhance(least.config, least.variables, np.zeros((0, 100)))


def test_the_public_function_takes_one_signal_or_rows(least):
    rows = np.stack([tone_in_noise(900, 1), 0.1 * tone_in_noise(900, 2)])
    wanted = [least(row, RATE) for row in rows]
    one = saf_jax.enhance(least.config, least.variables, rows[0], sample_rate_hz=RATE)
    np.testing.assert_array_equal(one, wanted[0])
    both = saf_jax.enhance(least.config, least.variables, rows, sample_rate_hz=RATE)
    np.testing.assert_allclose(both, wanted, atol=1e-6)
    np.testing.assert_array_equal(both, least.many(list(rows), RATE))
    with pytest.raises(ValueError, match=r"\[N\] or \[B, N\]"):
        saf_jax.enhance(least.config, least.variables, rows[None], sample_rate_hz=RATE)


def test_the_public_function_follows_the_variables_it_is_given(least):
    samples = tone_in_noise(900)
    for seed in (1, 2, 1):
        variables = networks.net_variables(least.config, seed)
        wanted = Enhancer(least.config, variables)(samples, RATE)
        np.testing.assert_array_equal(saf_jax.enhance(least.config, variables, samples, RATE), wanted)


def test_many_signals_share_eight_devices(least):
    assert jax.local_device_count() == 8
    signals = [tone_in_noise(1000 + 17 * i, i) for i in range(11)]
    together = Enhancer(least.config, least.variables).many(signals, RATE, [0.1] * 11)
    for signal, out in zip(signals, together):
        np.testing.assert_allclose(out, least(signal, RATE, 0.1), atol=1e-5)
    shapes = jax.ShapeDtypeStruct((8, 2400), np.float32), jax.ShapeDtypeStruct((8,), np.int32)
    rows = enhancement._enhance_rows(least.config)
    lowered = rows.lower(least._variables_everywhere, (*shapes, jax.ShapeDtypeStruct((8,), np.float32)))
    compiled = lowered.compile()
    assert len(compiled.output_shardings.device_set) == 8
    assert not [name for name in ("all-reduce", "all-gather", "all-to-all") if name in compiled.as_text()]


def test_inside_a_users_own_jit_and_vmap(least):
    """The public function is traced like any other; its result then is that of one pass."""
    rows = np.stack([tone_in_noise(900, 1), 0.1 * tone_in_noise(900, 2)])
    wanted = np.stack([whole(least, row) for row in rows])

    @jax.jit
    def louder(variables, samples):
        return 2 * saf_jax.enhance(least.config, variables, samples, RATE)

    np.testing.assert_allclose(louder(least.variables, rows), 2 * wanted, atol=1e-5)
    one = functools.partial(saf_jax.enhance, least.config, least.variables, sample_rate_hz=RATE)
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(rows), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="resample"):
        jax.jit(lambda samples: saf_jax.enhance(least.config, least.variables, samples, 4410))(rows)


@pytest.mark.parametrize("size", [0, 1, -16, 100])
def test_blocks_are_whole_hops(least, size):
    with pytest.raises(ValueError, match=f"block_samples={size}: must be a multiple of"):
        next(iter(least.blocks([np.zeros((1, 500), np.float32)], level=1.0, block_samples=size)))
