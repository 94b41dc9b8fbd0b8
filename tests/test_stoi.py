"""The parts of STOI that a library has too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from saf_jax.stoi import _resample, stoi


@settings(deadline=None)
@given(length=st.integers(1, 2000), ratio=st.sampled_from([(5, 8), (5, 4), (5, 24), (100, 441), (10, 11), (2, 1)]))
def test_resampling_equals_scipys(length, ratio):
    samples = np.random.default_rng(length).standard_normal(length)
    np.testing.assert_allclose(_resample(samples, *ratio), resample_poly(samples, *ratio), atol=1e-12)


@pytest.mark.parametrize("rate_hz", [8000, 10000, 16000, 44100, 48000])
def test_equal_signals_have_the_value_1_at_any_rate(rate_hz):
    speech = np.random.default_rng(0).standard_normal(rate_hz) * np.sin(np.linspace(0, 40, rate_hz))
    assert stoi(speech, 0.5 * speech, rate_hz) == pytest.approx(1.0, abs=1e-6)
    assert stoi(speech, np.random.default_rng(1).standard_normal(rate_hz), rate_hz) < 0.5


def test_too_short_signals_have_no_value():
    samples = np.random.default_rng(0).standard_normal(16000)
    for length in (1, 400, 6000):
        assert stoi(samples[:length], samples[:length], 16000) is None
