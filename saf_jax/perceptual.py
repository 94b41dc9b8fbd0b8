"""How far an estimate is from its target for a listener: a differentiable relative of WB-PESQ.

The perceptual model of ITU-T P.862 with the input filter of P.862.2, for signals that are aligned in time already:
power spectra on the Bark scale, compensation of gain and of the frequency response, Zwicker's loudness, masking, and a
disturbance that counts what was added for more than what was taken away. Martin-Donas et al. 2018 (PMSQE, IEEE SPL
25(11)) trained with such a disturbance first; theirs leaves out the norms over time.

How well it follows the package `pesq` is tested and told in tests/test_perceptual.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saf_jax.config import STFTConfig
from saf_jax.transforms import stft

# Bark bands of P.862: below the first, speech has nothing to say; from band to band the width grows by a constant part.
_BANDS, _FIRST_BARK, _FIRST_WIDTH, _GROWTH = 48, 0.157, 0.318, 1.01306
# Threshold of hearing in dB over Bark (P.862's absolute hearing threshold, in its units of power).
_THRESHOLD_BARK = (
    0.32,
    0.64,
    0.96,
    1.29,
    1.62,
    1.96,
    2.31,
    2.65,
    3.36,
    4.09,
    4.84,
    6.0,
    7.2,
    9.3,
    11.1,
    13.5,
    18.2,
    20.0,
    21.1,
)
_THRESHOLD_DB = (
    63.9,
    48.5,
    36.9,
    30.7,
    25.9,
    20.2,
    16.6,
    12.5,
    6.9,
    2.8,
    -0.1,
    -3.4,
    -5.3,
    -6.0,
    -5.1,
    -3.3,
    -3.2,
    -4.4,
    -2.7,
)
# Both signals are brought to this mean square between 350 and 3250 Hz, in 16 bit steps squared.
_LEVEL = 1e7
_LEVEL_BAND_HZ = (350.0, 3250.0)
# A signal whose mean square lies below this has no level to be brought to.
SILENCE = 1e-4
# P.862's factors of power per Bark, for windows of 512 samples, and of loudness.
_POWER_FACTOR, _LOUDNESS_FACTOR = 31.25 * 6.910853e-6, 0.1866055
_ZWICKER_POWER = 0.23
# P.862.2's input filter at 16 kHz: a high-pass that lifts by 9 dB.
_FILTER_B, _FILTER_A = (2.740826, -5.4816519, 2.740826), (1.0, -1.9444777, 0.94597794)


class Disturbance(NamedTuple):
    """Disturbance of whole signals, float32 [B] each, in the units of P.862; raw PESQ is 4.5 - 0.1 d - 0.0309 a.

    Attributes:
      symmetric: of what was added and taken away alike.
      asymmetric: of what was added.
    """

    symmetric: jax.Array
    asymmetric: jax.Array


class _Ear(NamedTuple):
    """Constants of the model for one resolution.

    Attributes:
      bands: float32 [F, bands], from the power of a bin to that of Bark bands.
      threshold: float32 [bands], power at the threshold of hearing.
      power: float32 [bands], exponent of Zwicker's law.
      width: float32 [bands], in Bark.
      level_bins: float32 [F], 1 between 350 and 3250 Hz.
    """

    bands: np.ndarray
    threshold: np.ndarray
    power: np.ndarray
    width: np.ndarray
    level_bins: np.ndarray


def disturbance(estimate: jax.Array, target: jax.Array, samples: jax.Array, sample_rate_hz: int) -> Disturbance:
    """Disturbance of each signal; gains of either signal do not matter.

    Args:
      estimate, target: float32 [B, N], near unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal.
      sample_rate_hz: of the samples; what lies above 8 kHz is not heard.

    References:
      ITU-T P.862 (2001), 10.2; P.862.2 (2007).
    """
    hop = max(1, round(sample_rate_hz * 0.016))
    resolution = STFTConfig(sample_rate_hz, window_samples=2 * hop, hop_samples=hop)
    ear = _ear(resolution)
    frames = jnp.where(samples > 0, resolution.frames(samples), 0)
    mask = (jnp.arange(resolution.frames(target.shape[1])) < frames[:, None]).astype(target.dtype)

    wanted, found = (_band_powers(signal, mask, ear, resolution) for signal in (target, estimate))
    wanted_power = _audible(wanted, ear, 1.0)
    # The target takes on the estimate's frequency response, within limits: listeners mind a slow colouring little.
    speaking = mask * (_audible(wanted, ear, 100.0) > 1e7)
    mean_wanted, mean_found = (
        jnp.sum(jnp.where(p > 100 * ear.threshold, p, 0.0) * speaking[..., None], axis=1, keepdims=True)
        / jnp.maximum(frames, 1)[:, None, None]
        for p in (wanted, found)
    )
    wanted = wanted * jnp.clip((mean_found + 1000) / (mean_wanted + 1000), 0.01, 100.0)
    # The estimate takes on the target's gain, frame by frame, within limits.
    gain = (_audible(wanted, ear, 1.0) + 5e3) / (_audible(found, ear, 1.0) + 5e3)
    found = found * jnp.clip(_smoothed(gain), 3e-4, 5.0)[..., None]

    loud_wanted, loud_found = (_loudness(p, ear) for p in (wanted, found))
    difference = loud_found - loud_wanted
    masked = jnp.maximum(jnp.abs(difference) - 0.25 * jnp.minimum(loud_found, loud_wanted), 0)
    asymmetry = ((found + 50) / (wanted + 50)) ** 1.2
    added = masked * jnp.where(asymmetry < 3, 0.0, jnp.minimum(asymmetry, 12.0))

    total_width = ear.width.sum()
    # The small constants keep the gradients of the roots finite at 0.
    symmetric = jnp.sqrt(jnp.sum((masked * ear.width) ** 2, -1) / total_width + 1e-6) * total_width
    asymmetric = jnp.sum(added * ear.width, -1)
    weight = ((wanted_power + 1e5) / 1e7) ** -0.04
    return Disturbance(*(_over_time(_capped(frame * weight), mask) for frame in (symmetric, asymmetric)))


def predicted_wb_pesq(parts: Disturbance) -> jax.Array:
    """WB-PESQ that a disturbance leaves, float32 [B], from about 1 to 4.64.

    A point of raw PESQ moves it by up to 1.37 near a score of 3 and by next to nothing near 1: where all is lost
    already, nothing more can be lost.

    References:
      ITU-T P.862 (2001), 10.2.11, for the raw score; P.862.2 (2007), 7, for its place on the scale of opinions.
    """
    raw = 4.5 - 0.1 * parts.symmetric - 0.0309 * parts.asymmetric
    return 0.999 + 4 * jax.nn.sigmoid(1.3669 * raw - 3.8224)


def _band_powers(samples: jax.Array, mask: jax.Array, ear: _Ear, resolution: STFTConfig) -> jax.Array:
    """Bark powers at P.862's level: float32 [B, N] -> [B, T, bands]."""
    spectrum = stft(samples, resolution)
    power = (jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2) * mask[..., None]
    # Parseval for a one-sided spectrum; 3/8 is the mean square of the Hann window.
    per_frame = resolution.window_samples**2 * 3 / 16
    level = jnp.sum(power @ ear.level_bins, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1) / per_frame
    return power @ ear.bands * (_LEVEL / jnp.maximum(level, SILENCE))[:, None, None]


def _audible(power: jax.Array, ear: _Ear, factor: float) -> jax.Array:
    """Sum of the powers above `factor` times the threshold: [B, T, bands] -> [B, T]."""
    return jnp.sum(jnp.where(power > factor * ear.threshold, power, 0.0), axis=-1)


def _smoothed(gain: jax.Array) -> jax.Array:
    """A leaky average over frames, [B, T]: a fifth of the one before, cut where it has died away."""
    taps = 0.8 * 0.2 ** np.arange(5)
    taps[-1] += 1 - taps.sum()
    padded = jnp.concatenate([jnp.repeat(gain[:, :1], 4, axis=1), gain], axis=1)
    return sum(tap * padded[:, 4 - k : padded.shape[1] - k] for k, tap in enumerate(taps))


def _loudness(power: jax.Array, ear: _Ear) -> jax.Array:
    """Zwicker's law (P.862, equation 4): [B, T, bands] -> the same, in sone per Bark."""
    scale = _LOUDNESS_FACTOR * (ear.threshold / 0.5) ** ear.power
    return scale * jnp.maximum((0.5 + 0.5 * power / ear.threshold) ** ear.power - 1, 0)


def _capped(values: jax.Array) -> jax.Array:
    """P.862 cuts the disturbance of a frame off at 45; a slope of 1 in 50 beyond it keeps the gradient alive."""
    return jnp.minimum(values, 45.0) + 0.02 * jnp.maximum(values - 45.0, 0.0)


def _over_time(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Norm with power 6 within 20 frames (320 ms), overlapping by half, then with power 2 over these: [B, T] -> [B]."""
    values, length = values * mask, values.shape[1]
    halves = -(-length // 10) + 1
    fill = ((0, 0), (0, 10 * halves - length))
    sixth = jnp.sum(jnp.pad(values, fill).reshape(len(values), halves, 10) ** 6, axis=2)
    valid = jnp.sum(jnp.pad(mask, fill).reshape(len(values), halves, 10), axis=2)
    count = valid[:, :-1] + valid[:, 1:]
    square = ((sixth[:, :-1] + sixth[:, 1:]) / jnp.maximum(count, 1) + 1e-9) ** (1 / 3)
    # A part of a segment counts as such: what is appended to a signal changes nothing.
    return jnp.sqrt(jnp.sum(square * count, axis=1) / jnp.maximum(jnp.sum(count, axis=1), 1))


@functools.cache
def _ear(resolution: STFTConfig) -> _Ear:
    bin_hz = resolution.sample_rate_hz / resolution.window_samples
    bins_hz = np.arange(resolution.bins) * bin_hz
    width = _FIRST_WIDTH * _GROWTH ** np.arange(_BANDS)
    edges = _FIRST_BARK + np.concatenate([[0], np.cumsum(width)])
    centres = (edges[1:] + edges[:-1]) / 2
    # The power of a bin goes to the bands that it overlaps, in parts.
    low, high = _bark(np.maximum(bins_hz - bin_hz / 2, 0)), _bark(bins_hz + bin_hz / 2)
    overlap = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    bands = np.maximum(overlap, 0) / (high - low)[:, None] / width
    delay = np.exp(-2j * np.pi * bins_hz / 16000)
    response = np.abs(np.polyval(_FILTER_B[::-1], delay) / np.polyval(_FILTER_A[::-1], delay))
    factor = _POWER_FACTOR * (512 / resolution.window_samples) ** 2
    arrays = (
        bands * (response**2 * factor)[:, None],
        10 ** (np.interp(centres, _THRESHOLD_BARK, _THRESHOLD_DB) / 10),
        _ZWICKER_POWER * np.clip(6 / (centres + 2), 1, 2) ** 0.15,
        width,
        (bins_hz > _LEVEL_BAND_HZ[0]) & (bins_hz < _LEVEL_BAND_HZ[1]),
    )
    return _Ear(*(array.astype(np.float32) for array in arrays))


def _bark(hz: np.ndarray | float) -> np.ndarray:
    """Zwicker and Terhardt 1980: critical-band rate of a frequency."""
    return 13 * np.arctan(0.76e-3 * hz) + 3.5 * np.arctan((hz / 7500) ** 2)
