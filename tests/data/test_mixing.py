"""Mixing: every function does what it says, and whole mixtures hold what they state."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from speechlike import speechlike

from saf_jax.config import MixingConfig
from saf_jax.data import mixing, noises
from saf_jax.data.active_level import active_level_db, rms_db, snr_db

RATE = 16000
# Nothing but speech and one recorded noise: the base that each test adds its own matter to.
PLAIN = MixingConfig(
    near_clean=0.0, speech_free=0.0, more_noises=0.0, babble=0.0, generated=0.0, impulses=0.0, noise_transform=0.0,
    intermittent=0.0, reverberation=0.0, speed=0.0, equaliser=0.0, band_limit=0.0, clipping=0.0, level=0.0,
)  # fmt: skip


class FakePools:
    """White noise, speech-like voices and one room."""

    has_noise = True
    has_rooms = True

    def noise(self, rng, samples):
        return rng.standard_normal(samples).astype(np.float32) * 0.05, "white"

    def voice(self, rng, samples):
        return speechlike(rng, samples), "voice"

    def room(self, rng):
        room = rng.standard_normal(8000) * np.exp(-np.arange(8000) / 1500) * 0.1
        room[:40] = 0
        room[40] = 1
        return room.astype(np.float32), "room"


def draw(seed, samples=24000, **changes):
    rng = np.random.default_rng(seed)
    speech = speechlike(np.random.default_rng(1000 + seed), samples)
    return speech, mixing.draw_mixture(rng, dataclasses.replace(PLAIN, **changes), speech, FakePools(), RATE)


@given(snr=st.floats(-20, 40), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_gain_holds_the_ratio(snr, seed):
    rng = np.random.default_rng(seed)
    speech, noise = speechlike(rng, 20000), rng.standard_normal(20000) * rng.uniform(0.001, 1)
    gain = mixing.gain_for_snr(speech, noise, snr, RATE)
    assert snr_db(speech, gain * noise, RATE) == pytest.approx(snr, abs=1e-6)


def test_gain_of_silence_is_an_error():
    with pytest.raises(ValueError, match="silence"):
        mixing.gain_for_snr(np.zeros(100), np.ones(100), 0.0, RATE)
    with pytest.raises(ValueError, match="silence"):
        mixing.gain_for_snr(speechlike(np.random.default_rng(0), 9000), np.zeros(9000), 0.0, RATE)


@pytest.mark.parametrize("seed", range(6))
def test_plain_mixture_is_speech_plus_noise_at_the_stated_ratio(seed):
    speech, mixture = draw(seed)
    np.testing.assert_allclose(mixture.noisy, mixture.clean + mixture.noise, atol=1e-6)
    scale = np.abs(mixture.clean).max() / np.abs(speech).max()
    np.testing.assert_allclose(mixture.clean, speech * scale, atol=1e-6)
    assert -5.3 <= mixture.snr_db <= 20.3
    assert snr_db(mixture.clean, mixture.noise, RATE) == pytest.approx(mixture.snr_db, abs=0.02)
    assert np.abs(mixture.noisy).max() <= 0.991


@pytest.mark.parametrize("seed", range(40))
def test_default_mixtures_are_sound(seed):
    """Everything may happen: finite, inside full scale, of one length, at the stated ratio."""
    rng = np.random.default_rng(seed)
    samples = int(rng.integers(1, 40000))
    speech = speechlike(rng, samples)
    mixture = mixing.draw_mixture(rng, MixingConfig(), speech, FakePools(), RATE)
    for signal in (mixture.clean, mixture.noisy, mixture.noise):
        assert signal.shape == (samples,) and signal.dtype == np.float32
        assert np.isfinite(signal).all() and np.abs(signal).max() <= 1.0
    if mixture.snr_db == -np.inf:
        assert not mixture.clean.any()
        assert mixture.noisy.any()
    else:
        assert snr_db(mixture.clean, mixture.noise, RATE) == pytest.approx(mixture.snr_db, abs=0.05)


def test_same_seed_same_mixture():
    first, second = (
        mixing.draw_mixture(
            np.random.default_rng(7), MixingConfig(), speechlike(np.random.default_rng(1), 9000), FakePools(), RATE
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.noisy, second.noisy)
    assert first.description == second.description


def test_near_clean_and_speech_free():
    _, mixture = draw(0, near_clean=1.0)
    assert 25 <= mixture.snr_db <= 45
    _, mixture = draw(0, speech_free=1.0)
    assert mixture.snr_db == -np.inf and not mixture.clean.any()
    np.testing.assert_array_equal(mixture.noisy, mixture.noise)
    assert -60 < rms_db(mixture.noise) < 0


def test_silent_speech_counts_as_speech_free():
    mixture = mixing.draw_mixture(np.random.default_rng(0), PLAIN, np.zeros(8000, np.float32), FakePools(), RATE)
    assert mixture.snr_db == -np.inf and not mixture.clean.any() and mixture.noisy.any()


def test_silent_noise_is_replaced():
    class Silent(FakePools):
        def noise(self, rng, samples):
            return np.zeros(samples, np.float32), "dead"

    speech = speechlike(np.random.default_rng(0), 16000)
    mixture = mixing.draw_mixture(np.random.default_rng(0), PLAIN, speech, Silent(), RATE)
    assert snr_db(mixture.clean, mixture.noise, RATE) == pytest.approx(mixture.snr_db, abs=0.02)


def test_level_is_set_and_keeps_the_ratio():
    _, mixture = draw(3, level=1.0, level_db=(-31.0, -31.0), snr_db=(15.0, 15.0))
    assert rms_db(mixture.clean) == pytest.approx(-31.0, abs=0.01)
    assert mixture.snr_db == pytest.approx(15.0, abs=0.01)


def test_reverberation_keeps_the_early_part():
    response = np.zeros(4000, np.float32)
    response[[50, 50 + 400, 50 + 2000]] = [1.0, 0.5, 0.25]
    dry = speechlike(np.random.default_rng(0), 20000)
    wet, early = mixing.reverberate(dry, response, RATE, early_ms=50.0)
    scale = 1 / np.sqrt(1 + 0.25)

    def delayed(samples):
        return np.concatenate([np.zeros(samples), dry[: len(dry) - samples]])

    np.testing.assert_allclose(early, scale * (dry + 0.5 * delayed(400)), atol=1e-5)
    np.testing.assert_allclose(wet, scale * (dry + 0.5 * delayed(400) + 0.25 * delayed(2000)), atol=1e-5)


def test_reverberant_mixture_aims_at_the_early_part():
    speech, mixture = draw(5, reverberation=1.0, noise_reverberation=0.0)
    late = mixture.noisy - mixture.noise - mixture.clean
    assert rms_db(late) > rms_db(mixture.clean) - 25
    # The target stays in step with the dry speech: no travel time.
    lags = np.correlate(mixture.clean[1000:9000], speech[1000:9000], "full")
    assert abs(int(np.argmax(lags)) - 7999) <= 2
    assert snr_db(mixture.clean, mixture.noise, RATE) == pytest.approx(mixture.snr_db, abs=0.02)


def test_colour_is_the_same_for_all_signals():
    rng = np.random.default_rng(0)
    signals = [rng.standard_normal(16000).astype(np.float32) for _ in range(3)]
    colour = mixing.draw_colour(rng, 9.0, 4000.0)
    together = mixing.colour_all(signals, colour, RATE)
    alone = mixing.colour_all(signals[1:2], colour, RATE)[0]
    np.testing.assert_allclose(together[1], alone, atol=1e-6)
    total = mixing.colour_all([sum(signals)], colour, RATE)[0]
    np.testing.assert_allclose(sum(together), total, atol=1e-4)
    spectrum = np.abs(np.fft.rfft(total)) ** 2
    above = spectrum[int(4600 / 8000 * len(spectrum)) :].sum()
    assert above < 1e-3 * spectrum.sum()


def test_colour_follows_its_gains():
    gains = np.zeros(11)
    gains[5] = 6.0  # 31 Hz * 2 ** 5 = 992 Hz
    for hertz, expected_db in ((992, 6.0), (496, 0.0), (1984, 0.0), (4000, 0.0)):
        tone = np.sin(2 * np.pi * hertz * np.arange(16000) / RATE).astype(np.float32)
        changed = mixing.colour_all([tone], mixing.Colour(gains), RATE)[0]
        assert rms_db(changed[4000:12000]) - rms_db(tone[4000:12000]) == pytest.approx(expected_db, abs=0.1)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_changes_pitch_and_length(factor):
    tone = np.sin(2 * np.pi * 400 * np.arange(32000) / RATE).astype(np.float32)
    changed = mixing.change_speed(tone, factor, 20000)
    spectrum = np.abs(np.fft.rfft(changed * np.hanning(20000)))
    assert np.argmax(spectrum) * RATE / 20000 == pytest.approx(400 * factor, abs=1)


def test_speed_that_runs_out_goes_round():
    assert mixing.change_speed(np.ones(100, np.float32), 2.0, 300).shape == (300,)


@given(part=st.floats(0.001, 0.2), seed=st.integers(0, 9))
@settings(deadline=None)
def test_clipping_touches_the_stated_part(part, seed):
    noisy = np.random.default_rng(seed).standard_normal(20000)
    clipped = mixing.clip(noisy, part)
    limit = np.abs(clipped).max()
    assert np.mean(np.abs(noisy) > limit) == pytest.approx(part, abs=0.001)
    inside = np.abs(noisy) <= limit
    np.testing.assert_array_equal(clipped[inside], noisy[inside])


def test_clipped_mixture_has_an_unclipped_target():
    _, plain = draw(2)
    _, clipped = draw(2, clipping=1.0, clipping_part=(0.02, 0.02))
    np.testing.assert_array_equal(clipped.clean, plain.clean)
    assert np.abs(clipped.noisy).max() < np.abs(plain.noisy).max()


def test_several_noises_and_babble():
    rng = np.random.default_rng(0)
    config = dataclasses.replace(PLAIN, more_noises=1.0, most_noises=3)
    _, names = mixing.draw_noise(rng, config, FakePools(), 8000, RATE)
    assert names == ["white"] * 3
    _, names = mixing.draw_noise(rng, dataclasses.replace(PLAIN, babble=1.0), FakePools(), 8000, RATE)
    assert names[0].startswith("babble of ")
    _, names = mixing.draw_noise(rng, dataclasses.replace(PLAIN, generated=1.0, impulses=1.0), FakePools(), 8000, RATE)
    assert names[0].startswith("generated ") and names[1] == "knocks"


def test_interrupted_noise_is_there_for_a_part():
    rng = np.random.default_rng(0)
    for _ in range(20):
        noise = mixing.interrupt(rng, np.ones(16000, np.float32), RATE)
        assert 0.05 < np.mean(noise > 0) < 0.75
        assert noise.max() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_transformed_noise_is_another_noise(seed):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(15000).astype(np.float32)
    changed = mixing.transform_noise(rng, noise, RATE)
    assert changed.shape == (10000,) and changed.dtype == np.float32
    assert np.isfinite(changed).all() and changed.std() > 0.05


def test_noise_is_not_changed_in_every_way_always():
    kinds = {mixing.transform_noise(np.random.default_rng(s), np.arange(300.0) + 1, RATE)[0] for s in range(40)}
    assert len(kinds) > 10


@pytest.mark.parametrize("kind", [*noises.KINDS, "knocks"])
def test_generated_noise(kind):
    make = getattr(noises, kind)
    for samples in (1, 333, 20000):
        first = make(np.random.default_rng(5), samples, RATE)
        assert first.shape == (samples,) and first.dtype == np.float32
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, make(np.random.default_rng(5), samples, RATE))
    assert np.mean(first**2) == pytest.approx(1.0, abs=1e-3)
    assert not np.array_equal(first, make(np.random.default_rng(6), 20000, RATE))


def test_kinds_sound_different():
    """Rough features tell the kinds apart: none is a copy of another under a new name."""
    features = {}
    for name, make in noises.KINDS.items():
        rows = []
        for seed in range(4):
            noise = make(np.random.default_rng(seed), 32000, RATE)
            power = np.abs(np.fft.rfft(noise)) ** 2
            centroid = np.sum(power * np.linspace(0, 1, len(power))) / power.sum()
            frames = np.sqrt(np.mean(noise.reshape(-1, 320) ** 2, axis=1)) + 1e-6
            flatness = np.exp(np.mean(np.log(power + 1e-9))) / power.mean()
            rows.append([centroid * 5, np.log(frames).std(), np.log10(flatness + 1e-6), np.log(np.mean(noise**4)) / 3])
        features[name] = np.mean(rows, axis=0)
    names = list(features)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert np.abs(features[one] - features[other]).max() > 0.05, (one, other)


def test_babble_has_all_voices():
    tones = [np.sin(2 * np.pi * hertz * np.arange(16000) / RATE) for hertz in (300, 700, 1900)]
    babble = noises.babble(np.random.default_rng(0), tones, 8000)
    spectrum = np.abs(np.fft.rfft(babble))
    for hertz in (300, 700, 1900):
        assert spectrum[hertz // 2 - 3 : hertz // 2 + 3].max() > 0.1 * spectrum.max()
    assert not noises.babble(np.random.default_rng(0), [np.zeros(10)], 20).any()


def test_take_goes_round_when_short():
    piece = noises.take(np.random.default_rng(0), np.arange(5), 12)
    assert len(piece) == 12
    assert set(np.diff(piece)) == {1, -4}
    assert active_level_db(piece / 10, RATE) > -100
