"""Hu and Loizou's composite measures and their parts: SSNR, LLR, WSS; CSIG, CBAK, COVL. Vectorised over frames.

All take the clean reference and the signal to judge as float samples [N] with full scale 1, and look at the same
frames: 30 ms every 7.5 ms. Digital silence gets a value too: LLR adds float64's eps to both signals, so that a silent
frame has a spectral envelope (that of the window) and a finite distance.

References:
  Hu, Loizou: "Evaluation of Objective Quality Measures for Speech Enhancement", IEEE TASLP 16 (1), 2008.
"""

import functools
import math
from typing import Literal, NamedTuple

import numpy as np

from saf_jax.errors import UserError

SAMPLE_RATE_HZ = 16000
"""The rate that WB-PESQ and the published tables are defined for."""

CompositeScale = Literal["standard", "divided"]
"""How samples enter WSS: as they are, or divided by 32768 as in the script behind some published tables."""

_EPS = float(np.finfo(np.float64).eps)


class UndefinedMetricError(UserError):
    """A metric has no value for these signals; the message says why."""


class Composite(NamedTuple):
    """Hu and Loizou's composite measures: predicted opinion scores, each limited to [1, 5].

    Attributes:
      csig: distortion of the speech.
      cbak: intrusiveness of the background.
      covl: overall quality.
    """

    csig: float
    cbak: float
    covl: float


def ssnr_db(clean: np.ndarray, enhanced: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """Segmental signal-to-noise ratio: the mean over 30 ms frames of the SNR in dB, each limited to [-10, 35].

    Raises:
      UndefinedMetricError: shorter than one frame and a hop (37.5 ms).

    References:
      Hu, Loizou 2008, section II.C; frames and limits as in the composite measures.
    """
    clean, enhanced = checked_pair(clean, enhanced)
    signal = np.square(_frames(clean, sample_rate_hz)).sum(axis=1)
    noise = np.square(_frames(clean - enhanced, sample_rate_hz)).sum(axis=1)
    return float(np.clip(10.0 * np.log10(signal / (noise + _EPS) + _EPS), -10.0, 35.0).mean())


def llr(clean: np.ndarray, enhanced: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """Log-likelihood ratio: distance of the spectral envelopes, mean of the lowest 95 % of the frames, without a cap.

    Linear prediction of order 16 (10 below 10 kHz). float64's eps is added to both signals, which gives digital silence
    an envelope.

    Raises:
      UndefinedMetricError: shorter than one frame and a hop (37.5 ms).

    References:
      Hu, Loizou 2008, equation 2.
    """
    clean, enhanced = checked_pair(clean, enhanced)
    order = 10 if sample_rate_hz < 10000 else 16
    clean_lags = _autocorrelation(_frames(clean + _EPS, sample_rate_hz), order)
    enhanced_lags = _autocorrelation(_frames(enhanced + _EPS, sample_rate_hz), order)
    numerator = _prediction_error(_linear_prediction(enhanced_lags), clean_lags)
    denominator = _prediction_error(_linear_prediction(clean_lags), clean_lags)
    return _mean_of_lowest(np.log(numerator / denominator))


def wss(
    clean: np.ndarray,
    enhanced: np.ndarray,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    *,
    composite_scale: CompositeScale = "standard",
) -> float:
    """Weighted spectral slope distance over 25 critical bands, mean of the lowest 95 % of the frames.

    Args:
      clean: reference, float [N], full scale 1.
      enhanced: signal to judge, float [N].
      sample_rate_hz: rate of both.
      composite_scale: "divided" divides the samples by 32768, so that the floor of 1e-10 hides weak bands.

    Raises:
      UndefinedMetricError: shorter than one frame and a hop (37.5 ms).

    References:
      Klatt: "Prediction of perceived phonetic distance from critical-band spectra", ICASSP 1982; Hu, Loizou 2008.
    """
    clean, enhanced = checked_pair(clean, enhanced)
    divisor = 32768.0 if composite_scale == "divided" else 1.0
    slopes, weights = [], []
    for samples in (clean, enhanced):
        energy_db = _band_energy_db(_frames(samples / divisor, sample_rate_hz), sample_rate_hz)
        slope = np.diff(energy_db, axis=1)
        slopes.append(slope)
        weights.append(_slope_weights(energy_db, slope))
    weight = (weights[0] + weights[1]) / 2
    distance = (weight * np.square(slopes[0] - slopes[1])).sum(axis=1) / weight.sum(axis=1)
    return _mean_of_lowest(distance)


def composite(pesq: float, llr: float, wss: float, ssnr_db: float) -> Composite:
    """CSIG, CBAK and COVL from their parts, each limited to [1, 5].

    References:
      Hu, Loizou 2008, section IV; coefficients of the wide-band use in the field's tables.
    """
    return Composite(
        csig=_limit(3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss),
        cbak=_limit(1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr_db),
        covl=_limit(1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss),
    )


def _limit(value: float) -> float:
    return float(np.clip(value, 1.0, 5.0))


def checked_pair(clean: np.ndarray, enhanced: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [N]; raises `UserError` unless they are of one length and finite."""
    clean, enhanced = (np.asarray(samples, dtype=np.float64) for samples in (clean, enhanced))
    if clean.ndim != 1 or clean.shape != enhanced.shape or not len(clean):
        raise UserError(f"the metrics need two signals [N] of one length, not {clean.shape} and {enhanced.shape}")
    if not (np.isfinite(clean).all() and np.isfinite(enhanced).all()):
        raise UserError("the metrics need finite samples: there are NaN or infinite ones")
    return clean, enhanced


def _frames(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Windowed frames [frames, window] of 30 ms every 7.5 ms, as many as the composite measures take."""
    window = round(0.030 * sample_rate_hz)
    hop = window // 4
    count = int(len(samples) / hop - window / hop)
    if count < 1:
        raise UndefinedMetricError(f"{len(samples)} samples are too few for frames of 30 ms")
    taper = 0.5 * (1.0 - np.cos(2.0 * np.pi * np.arange(1, window + 1) / (window + 1)))
    return np.lib.stride_tricks.sliding_window_view(samples, window)[: count * hop : hop] * taper


def _mean_of_lowest(distances: np.ndarray) -> float:
    """Mean of the lowest 95 % of the frames, the rule of LLR and WSS."""
    kept = max(1, round(0.95 * len(distances)))
    return float(np.sort(distances)[:kept].mean())


def _autocorrelation(frames: np.ndarray, order: int) -> np.ndarray:
    """Autocorrelation of each frame at lags 0 to `order`: [frames, order + 1]."""
    length = frames.shape[1]
    return np.stack([np.einsum("ij,ij->i", frames[:, : length - k], frames[:, k:]) for k in range(order + 1)], axis=1)


def _linear_prediction(lags: np.ndarray) -> np.ndarray:
    """Levinson-Durbin over all frames at once: lags [frames, order + 1] -> coefficients [frames, order + 1]."""
    frames, terms = lags.shape
    coefficients = np.zeros((frames, terms))
    coefficients[:, 0] = 1.0
    error = lags[:, 0].copy()
    for i in range(1, terms):
        reflection = -np.einsum("ij,ij->i", coefficients[:, :i], lags[:, i:0:-1]) / error
        coefficients[:, 1 : i + 1] += reflection[:, None] * coefficients[:, i - 1 :: -1][:, :i]
        error *= 1.0 - np.square(reflection)
    return coefficients


def _prediction_error(coefficients: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Energy that a prediction leaves, a R a^T with R the Toeplitz matrix of the lags: [frames]."""
    correlated = _autocorrelation(coefficients, lags.shape[1] - 1)
    return correlated[:, 0] * lags[:, 0] + 2.0 * np.einsum("ij,ij->i", correlated[:, 1:], lags[:, 1:])


# Centres and widths in Hz of the 25 critical bands (Hu, Loizou 2008, after Quackenbush et al. 1988).
_BAND_CENTRES_HZ = (
    50.0, 120.0, 190.0, 260.0, 330.0, 400.0, 470.0, 540.0, 617.372, 703.378, 798.717, 904.128, 1020.38, 1148.30,
    1288.72, 1442.54, 1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63,
)  # fmt: skip
_BAND_WIDTHS_HZ = (
    70.0, 70.0, 70.0, 70.0, 70.0, 70.0, 70.0, 77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823,
    168.154, 183.457, 199.776, 217.153, 235.631, 255.255, 276.072, 298.126, 321.465, 346.136,
)  # fmt: skip


@functools.cache
def _critical_bands(sample_rate_hz: int, fft_size: int) -> np.ndarray:
    """Bell-shaped filters over the bins below Nyquist, cut at -30 dB: [bins, 25]."""
    half = fft_size // 2
    centres = np.floor(np.asarray(_BAND_CENTRES_HZ) / (sample_rate_hz / 2) * half)
    widths_hz = np.asarray(_BAND_WIDTHS_HZ)
    widths = widths_hz / (sample_rate_hz / 2) * half
    bins = np.arange(half)[:, None]
    gain = np.exp(-11.0 * np.square((bins - centres) / widths) + np.log(widths_hz[0] / widths_hz))
    return np.where(gain > math.exp(-30.0 / (2.0 * 2.303)), gain, 0.0)


def _band_energy_db(frames: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Energy in dB of the critical bands of each frame, floored at -100 dB: [frames, 25]."""
    fft_size = 2 ** math.ceil(math.log2(2 * frames.shape[1]))
    spectrum = np.fft.rfft(frames, fft_size, axis=1)[:, :-1]
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return 10.0 * np.log10(np.maximum(power @ _critical_bands(sample_rate_hz, fft_size), 1e-10))


def _slope_weights(energy_db: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Klatt's weights, larger near the highest and the nearest local peak: [frames, 24].

    The local peak of a rising slope is taken one band below the true one, as the composite measures do.
    """
    bands = np.arange(slope.shape[1])
    rising = slope > 0
    top = np.minimum.accumulate(np.where(rising, slope.shape[1], bands)[:, ::-1], axis=1)[:, ::-1]
    bottom = np.maximum.accumulate(np.where(rising, bands, -1), axis=1)
    peak = np.take_along_axis(energy_db, np.where(rising, top - 1, bottom + 1), axis=1)
    lower = energy_db[:, :-1]
    highest = energy_db.max(axis=1, keepdims=True)
    return 20.0 / (20.0 + highest - lower) / (1.0 + peak - lower)
