import numpy as np
import pytest
from networks import STFT, tone_in_noise

from saf_jax.level import SILENCE, frame_energies, gated_level, running_level, safe_level, sample_level
from saf_jax.transforms import stft

HOP = STFT.hop_samples


def test_frame_energies_are_mean_squares_of_hops():
    samples = tone_in_noise(100)
    padded = np.pad(samples.astype(np.float64), (0, 12)).reshape(7, HOP)
    np.testing.assert_allclose(frame_energies(samples, STFT), (padded**2).mean(axis=1), rtol=1e-5)


def test_level_is_the_rms_of_the_frames_within_40_db_of_the_loudest():
    rng = np.random.default_rng(0)
    loud, quiet, inaudible = rng.standard_normal((3, 50 * HOP))
    together = np.concatenate([loud, 0.05 * quiet, 0.002 * inaudible]).astype(np.float32)  # 0, -26, -54 dB
    frames = np.concatenate([loud, 0.05 * quiet]).astype(np.float32)
    assert float(sample_level(together, STFT)) == pytest.approx(np.sqrt(np.mean(frames**2)), rel=1e-4)


def test_level_of_full_scale_square_wave_is_1():
    assert float(sample_level(np.tile([1.0, -1.0], 800).astype(np.float32), STFT)) == pytest.approx(1)


@pytest.mark.parametrize("silence", [0, 1e-4])
def test_pauses_do_not_shift_the_level(silence):
    speech = tone_in_noise(200 * HOP)
    pause = np.full(1000 * HOP, silence, np.float32)
    alone = float(sample_level(speech, STFT))
    assert float(sample_level(np.concatenate([speech, pause]), STFT)) == pytest.approx(alone, rel=1e-6)


def test_level_of_silence_is_0_and_can_still_be_divided_by():
    level = sample_level(np.zeros((2, 100), np.float32), STFT)
    np.testing.assert_array_equal(level, [0, 0])
    np.testing.assert_array_equal(safe_level(level), [1, 1])
    np.testing.assert_array_equal(safe_level(np.array([SILENCE / 2, 0.1], np.float32)), np.float32([1, 0.1]))


def test_level_takes_numpy_arrays_too():
    energies = np.random.default_rng(0).uniform(size=(3, 40))
    assert isinstance(gated_level(energies), np.ndarray)
    np.testing.assert_allclose(gated_level(energies), np.sqrt(energies.mean(axis=-1, where=energies > 1e-4)), rtol=1e-3)


def test_running_level_is_the_recursion_it_claims():
    spectrum = np.asarray(stft(tone_in_noise(2000)[None], STFT))
    levels, _ = running_level(spectrum, STFT)
    # The mean square of a windowed frame, by Parseval; a Hann window passes 3/8 of the power.
    powers = (np.fft.irfft(spectrum[0].astype(np.complex128), axis=-1) ** 2).mean(axis=-1) / (3 / 8)
    keep = np.exp(-HOP / (1.0 * STFT.sample_rate_hz))
    power = weight = 0.0
    for t, value in enumerate(powers):
        power, weight = keep * power + (1 - keep) * value, keep * weight + (1 - keep)
        assert float(levels[0, t]) == pytest.approx(np.sqrt(power / weight), rel=1e-4)


def test_running_level_is_unbiased_from_the_first_full_frame_on():
    noise = np.random.default_rng(0).normal(0, 0.1, 50 * HOP).astype(np.float32)
    levels = np.asarray(running_level(stft(noise[None], STFT), STFT)[0])[0]
    np.testing.assert_allclose(levels[1:-2], 0.1, rtol=0.4)
    assert levels[45] == pytest.approx(0.1, rel=0.1)


def test_running_level_does_not_look_ahead():
    spectrum = np.asarray(stft(tone_in_noise(2000)[None], STFT))
    changed = spectrum.copy()
    changed[:, 60:] *= 100
    levels, other = (np.asarray(running_level(x, STFT)[0]) for x in (spectrum, changed))
    np.testing.assert_array_equal(levels[:, :60], other[:, :60])
    assert (other[:, 60:] > levels[:, 60:]).all()


def test_running_level_goes_on_from_its_state():
    spectrum = np.asarray(stft(tone_in_noise(2000)[None], STFT))
    whole, last = running_level(spectrum, STFT)
    first, state = running_level(spectrum[:, :37], STFT)
    second, end = running_level(spectrum[:, 37:], STFT, state)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=1e-6)
    np.testing.assert_allclose(end, last, rtol=1e-6)


def test_running_level_of_silence_is_0():
    assert not np.asarray(running_level(np.zeros((1, 5, STFT.bins), np.complex64), STFT)[0]).any()
