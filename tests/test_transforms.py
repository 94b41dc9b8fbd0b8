import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saf_jax.config import STFTConfig
from saf_jax.transforms import hann, istft, stft

SIZES = [STFTConfig(window_samples=320, hop_samples=160), STFTConfig(window_samples=400, hop_samples=100)]
sizes = pytest.mark.parametrize("config", SIZES, ids=lambda config: f"{config.window_samples}/{config.hop_samples}")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@sizes
@pytest.mark.parametrize("length", [1601, 8000])
def test_equals_librosa(config, length):
    import librosa

    window, hop, samples = config.window_samples, config.hop_samples, noise(length)
    ours = np.asarray(stft(samples[None], config))[0]
    assert ours.dtype == np.complex64
    assert ours.shape == (config.frames(length), config.bins)
    # librosa's own centring goes wrong in the last frame at some sizes: the padding is done here.
    padded = np.pad(samples, (window // 2, (len(ours) - 1) * hop + window // 2 - length))
    theirs = librosa.stft(padded, n_fft=window, hop_length=hop, win_length=window, window="hann", center=False).T
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())
    centred = librosa.stft(samples, n_fft=window, hop_length=hop, center=True, pad_mode="constant").T
    assert len(centred) == 1 + length // hop
    np.testing.assert_allclose(ours[: len(centred)], centred, atol=1e-6 * np.abs(centred).max())


@sizes
def test_inverse_equals_librosa_on_a_spectrum_that_belongs_to_no_signal(config):
    import librosa

    window, hop = config.window_samples, config.hop_samples
    rng = np.random.default_rng(0)
    spectrum = (rng.standard_normal((21, config.bins)) + 1j * rng.standard_normal((21, config.bins))).astype(
        np.complex64
    )
    theirs = librosa.istft(spectrum.T, hop_length=hop, n_fft=window, window="hann", center=False)
    ours = istft(spectrum[None], config, 20 * hop)[0]
    # Without their half window at the start; at both ends the sums of windows are too small to compare.
    inner = slice(window, 18 * hop)
    theirs = theirs[window // 2 :]
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=2e-6 * np.abs(theirs[inner]).max())


@sizes
@pytest.mark.usefixtures("quick_compile")
@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, 1500), seed=st.integers(0, 99))
@example(length=1, seed=0)
@example(length=2, seed=0)
@example(length=99, seed=0)
@example(length=159, seed=0)
@example(length=161, seed=0)
@example(length=321, seed=0)
def test_round_trip_at_any_length(config, length, seed):
    samples = noise(2, length, seed=seed)
    # One program instead of one for each operation: every length is compiled anew.
    spectrum, back = jax.jit(lambda x: (y := stft(x, config), istft(y, config, length)))(samples)
    assert spectrum.shape == (2, config.frames(length), config.bins)
    assert back.shape == samples.shape
    assert back.dtype == jnp.float32
    np.testing.assert_allclose(back, samples, atol=2e-6)


@sizes
def test_appended_zeros_append_frames_of_zeros_and_change_nothing_else(config):
    samples, length = noise(1, 3000), 1234
    samples[:, length:] = 0
    short, long = stft(samples[:, :length], config), stft(samples, config)
    frames = config.frames(length)
    assert short.shape[1] == frames < long.shape[1]
    np.testing.assert_allclose(long[:, :frames], short, atol=1e-6)
    assert not np.asarray(long[:, frames:]).any()
    np.testing.assert_allclose(istft(long, config, 3000)[:, :length], istft(short, config, length), atol=1e-6)


@sizes
def test_every_sample_lies_under_the_frames(config):
    """The number of frames is the smallest whose windows, together with those beyond them, leave no sample out."""
    for length in (1, 160, 161, 480, 481):
        last = config.frames(length) - 1
        assert last * config.hop_samples - config.window_samples // 2 < length
        assert (last + 1) * config.hop_samples - config.window_samples // 2 >= length


def test_leading_axes_jit_and_gradients():
    config, samples = SIZES[0], noise(2, 3, 500)

    @jax.jit
    def there_and_back(samples):
        return istft(stft(samples, config), config, 500)

    np.testing.assert_allclose(there_and_back(samples), samples, atol=2e-6)
    gradient = jax.grad(lambda x: jnp.sum(there_and_back(x) ** 2))(samples)
    np.testing.assert_allclose(gradient, 2 * samples, atol=1e-5)


def test_window_is_the_periodic_hann_window():
    import scipy.signal

    np.testing.assert_allclose(hann(320), scipy.signal.get_window("hann", 320), atol=1e-7)
