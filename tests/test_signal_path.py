import dataclasses

import networks
import numpy as np
import pytest
from networks import tone_in_noise

from saf_jax.level import sample_level
from saf_jax.signal_path import analyse, synthesise

CONFIGS = {"whole": networks.config(), "causal": networks.config(causal=True)}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@each_config
def test_synthesis_undoes_analysis(config):
    samples = np.stack([tone_in_noise(801, 1), 1e-3 * tone_in_noise(801, 2)])
    spectrum, level = analyse(samples, config)
    assert level.shape == ((2, config.stft.frames(801), 1) if config.model.causal else (2, 1, 1))
    np.testing.assert_allclose(synthesise(spectrum, level, config, 801), samples, atol=2e-5)
    np.testing.assert_allclose(synthesise(spectrum, level, config, 801)[1], samples[1], atol=2e-7)


@each_config
def test_the_network_sees_the_same_at_any_level(config):
    samples = tone_in_noise(801)[None]
    loud, quiet = analyse(samples, config), analyse(1e-3 * samples, config)
    np.testing.assert_allclose(quiet.spectrum, loud.spectrum, atol=1e-4)
    np.testing.assert_allclose(1000 * quiet.level, loud.level, rtol=1e-5)


def test_the_spectrum_is_that_of_a_signal_of_unit_level():
    config = CONFIGS["whole"]
    plain = dataclasses.replace(config, stft=dataclasses.replace(config.stft, compression=1.0))
    samples = tone_in_noise(1600)[None]
    spectrum, level = analyse(samples, plain)
    unit = synthesise(spectrum, np.ones_like(level), plain, 1600)
    assert float(sample_level(unit, plain.stft)[0]) == pytest.approx(1, rel=1e-4)


@each_config
def test_a_given_level_is_used(config):
    noisy, clean = tone_in_noise(801, 1)[None], 0.3 * tone_in_noise(801, 2)[None]
    level = analyse(noisy, config).level
    spectrum, used = analyse(clean, config, level)
    np.testing.assert_array_equal(used, level)
    np.testing.assert_allclose(synthesise(spectrum, level, config, 801), clean, atol=2e-5)


@each_config
@pytest.mark.parametrize("size", [0, 1e-8])
def test_silence_stays_silent_whatever_the_network_says(config, size):
    """Below -120 dB of full scale there is nothing but rounding, which the network would blow up."""
    spectrum, level = analyse(np.float32(size) * tone_in_noise(400)[None], config)
    estimate = networks.spectrum(*spectrum.shape)
    assert not np.asarray(synthesise(estimate, level, config, 400)).any()
    assert np.asarray(synthesise(estimate, np.ones_like(level), config, 400)).any()
