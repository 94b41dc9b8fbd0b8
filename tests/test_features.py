import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import spectrum

from saf_jax.config import STFTConfig
from saf_jax.features import PHASE_FLOOR, compress, decompress, magnitude_phase_real_imaginary


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_compression_raises_magnitudes_and_keeps_phases(power):
    config, x = STFTConfig(compression=power), spectrum(2, 5, 9)
    got = np.asarray(compress(x, config))
    np.testing.assert_allclose(got, np.abs(x) ** power * np.exp(1j * np.angle(x)), atol=2e-6)
    np.testing.assert_allclose(decompress(got, config), x, atol=1e-5)


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_round_trip_holds_down_to_silence(power):
    config = STFTConfig(compression=power)
    x = spectrum(1, 200, 9) * np.geomspace(1e-12, 1, 200, dtype=np.float32)[:, None]
    back = np.asarray(decompress(compress(x, config), config))
    # The constant in the root shows below 1e-5 of unit level, 100 dB below the signal.
    np.testing.assert_allclose(back, x, atol=2e-5)
    loud = np.abs(x) > 1e-3
    assert (np.abs(back - x)[loud] < 1e-3 * np.abs(x)[loud]).all()
    assert not np.asarray(decompress(compress(np.zeros_like(x), config), config)).any()


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1.0, 100.0])
@pytest.mark.parametrize("power", [0.1, 0.3, 0.5, 0.99, 1.0])
def test_gradients_of_compression_are_finite(power, scale):
    config = STFTConfig(compression=power)

    def total(parts):
        squeezed = compress(jax.lax.complex(*parts), config)
        return jnp.sum(jnp.abs(squeezed + 1) ** 2) + jnp.sum(jnp.abs(decompress(squeezed, config) + 1) ** 2)

    x = spectrum(1, 3, 5) * np.float32(scale)
    value, gradient = jax.value_and_grad(total)((x.real, x.imag))
    assert np.isfinite(value)
    assert all(np.isfinite(part).all() for part in gradient)


def test_the_four_spectra():
    x = spectrum(2, 5, 9)
    magnitude, phase, real, imaginary = map(np.asarray, magnitude_phase_real_imaginary(x))
    assert {part.dtype for part in (magnitude, phase, real, imaginary)} == {np.dtype(np.float32)}
    inner = np.s_[..., 1:-1]
    np.testing.assert_allclose(magnitude[inner], np.abs(x)[inner], rtol=1e-6)
    np.testing.assert_allclose(phase[inner], np.angle(x)[inner], atol=1e-6)
    np.testing.assert_array_equal(real, x.real)
    np.testing.assert_array_equal(imaginary[inner], x.imag[inner])
    np.testing.assert_allclose(magnitude * np.exp(1j * phase), real + 1j * imaginary, atol=1e-5)


def test_dc_and_nyquist_have_no_imaginary_part_and_a_phase_of_0_or_pi():
    x = np.full((1, 2, 5), -1, np.complex64)
    x.imag = [[0.0], [-0.0]]
    for edge in (0, -1):
        x[0, :, edge].imag = [1e-8, -1e-8]
    _, phase, _, imaginary = map(np.asarray, magnitude_phase_real_imaginary(x))
    for edge in (0, -1):
        assert not imaginary[..., edge].any()
        assert not np.signbit(imaginary[..., edge]).any()
        np.testing.assert_allclose(phase[..., edge], np.pi, rtol=1e-6)
    assert not np.asarray(magnitude_phase_real_imaginary(-x)[1])[..., [0, -1]].any()


def test_phase_near_silence_is_zero_and_magnitude_goes_to_zero_without_a_step():
    angles = np.exp(1j * np.linspace(-3, 3, 9))
    for size in (0.0, 1e-30, 0.5 * PHASE_FLOOR, 0.999 * PHASE_FLOOR):
        magnitude, phase, _, _ = magnitude_phase_real_imaginary((size * angles[None, None]).astype(np.complex64))
        assert not np.asarray(phase).any()
        assert np.asarray(magnitude).max() <= size
    below, above = (
        np.asarray(magnitude_phase_real_imaginary(np.full((1, 1, 3), size, np.complex64))[0])
        for size in (0.9999 * PHASE_FLOOR, 1.0001 * PHASE_FLOOR)
    )
    np.testing.assert_allclose(below, above, rtol=1e-3)
    phase = magnitude_phase_real_imaginary((2 * PHASE_FLOOR * angles[None, None]).astype(np.complex64))[1]
    np.testing.assert_allclose(phase[0, 0, 1:-1], np.angle(angles)[1:-1], atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-6, PHASE_FLOOR, 1.0])
def test_gradients_of_the_four_spectra_are_finite(size):
    def total(real, imaginary):
        return sum(
            jnp.sum((part + 1) ** 2) for part in magnitude_phase_real_imaginary(jax.lax.complex(real, imaginary))
        )

    x = spectrum(1, 3, 5) * np.float32(size)
    for gradient in jax.grad(total, argnums=(0, 1))(x.real, x.imag):
        assert np.isfinite(gradient).all()
