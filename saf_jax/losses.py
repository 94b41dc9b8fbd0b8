"""Training losses: pure functions of estimate and target.

Each returns a sum and a count, not a mean: the loss of a batch that is spread over devices and padded is the sum of
all sums divided by the sum of all counts. All values and gradients are finite at digital silence.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from saf_jax.config import Config, LossConfig, STFTConfig
from saf_jax.envelope import log_likelihood_ratio
from saf_jax.intelligibility import envelope_correlation
from saf_jax.perceptual import SILENCE, disturbance, predicted_wb_pesq
from saf_jax.transforms import stft

# Windows of the multi-resolution term; the hop is a quarter of each.
_RESOLUTIONS_MS = (16, 32, 64)
# The waveforms having unit level, what is 60 dB below it need not be matched in dB.
_LOG_FLOOR = 1e-3
# A target quieter than this part of unit level is measured against this part.
_QUIET = 10 ** (-30 / 20)
# Compressed magnitude below which the phase is left alone: its gradient grows with the inverse of the magnitude.
_PHASELESS = 1e-2
# Where the SI-SDR stops to count, so that an almost clean signal does not drown the others.
_MOST_SI_SDR_DB = 35.0
# The segmental term's frames and limits: those of the metric SSNR.
_SEGMENT_HOP_SECONDS, _SEGMENT_HOPS = 0.0075, 4
_LEAST_SEGMENT_SNR_DB, _MOST_SEGMENT_SNR_DB = -10.0, 35.0


class Term(NamedTuple):
    """Sum over the valid elements of a batch, and their number; the loss is `total / count`."""

    total: jax.Array
    count: jax.Array


class Signals(NamedTuple):
    """What losses compare, all at the level that the network works at (that of the noisy signal is 1).

    Attributes:
      estimate: complex64 [B, T, F], compressed domain, as the network gave it.
      target: complex64 [B, T, F], compressed domain.
      resynthesised: complex64 [B, T, F], compressed domain: the spectrum of `estimated_samples`.
      estimated_samples: float32 [B, N], 0 beyond `samples`.
      target_samples: float32 [B, N], 0 beyond `samples`.
      frames: int32 [B], valid frames of each signal.
      samples: int32 [B], valid samples of each signal.
    """

    estimate: jax.Array
    target: jax.Array
    resynthesised: jax.Array
    estimated_samples: jax.Array
    target_samples: jax.Array
    frames: jax.Array
    samples: jax.Array


def complex_error(estimate: jax.Array, target: jax.Array, frames: jax.Array) -> Term:
    """Squared error of the real plus that of the imaginary part (DB-AIAT, arXiv 2110.06467, equation 9).

    Args:
      estimate, target: complex64 [B, T, F], compressed domain.
      frames: int32 [B], valid frames of each signal.
    """
    return _masked(_power(estimate - target), frames)


def magnitude_error(estimate: jax.Array, target: jax.Array, frames: jax.Array) -> Term:
    """Squared error of the magnitudes (DB-AIAT, equation 9).

    Args:
      estimate, target: complex64 [B, T, F], compressed domain.
      frames: int32 [B], valid frames of each signal.
    """
    return _masked((_safe_magnitude(estimate) - _safe_magnitude(target)) ** 2, frames)


def time_error(estimate: jax.Array, target: jax.Array, samples: jax.Array) -> Term:
    """Absolute error of the samples (CMGAN, arXiv 2203.15149, equation 6).

    Args:
      estimate, target: float32 [B, N], unit level.
      samples: int32 [B], valid samples of each signal.
    """
    mask = jnp.arange(estimate.shape[1]) < samples[:, None]
    return Term(jnp.sum(jnp.abs(estimate - target) * mask), jnp.sum(samples).astype(estimate.dtype))


def consistency_error(estimate: jax.Array, resynthesised: jax.Array, frames: jax.Array) -> Term:
    """How far an estimate is from a spectrum that some waveform has (MP-SENet, arXiv 2305.13686, section 2.3).

    Overlapping frames of a free estimate contradict each other; overlap-add averages the contradiction away, and the
    spectrum of what comes out differs.

    Args:
      estimate: complex64 [B, T, F], compressed domain.
      resynthesised: complex64 [B, T, F], compressed domain: the spectrum of the waveform made of `estimate`.
      frames: int32 [B], valid frames of each signal.
    """
    return complex_error(estimate, resynthesised, frames)


def phase_error(estimate: jax.Array, target: jax.Array, frames: jax.Array) -> Term:
    """Anti-wrapped error of instantaneous phase, group delay and instantaneous angular frequency, summed.

    With the phase error wrapped into [-pi, pi], the three are its size, that of its difference between neighbouring
    bands and that of its difference between neighbouring frames, each wrapped again. Bands without a phase (DC,
    Nyquist) and bins where the target is next to silent do not count.

    Args:
      estimate, target: complex64 [B, T, F], compressed domain.
      frames: int32 [B], valid frames of each signal.

    References:
      MP-SENet, arXiv 2305.13686, equations 4 to 7.
    """
    estimate, target = estimate[..., 1:-1], target[..., 1:-1]
    turned = estimate * jnp.conj(target)
    heard = (_power(target) > _PHASELESS**2) & (jnp.arange(target.shape[1]) < frames[:, None])[..., None]
    angled = heard & (_power(estimate) > _PHASELESS**2)
    # The inner `where`s keep the gradient of arctan2 away from 0, where it is infinite.
    error = jnp.arctan2(jnp.where(angled, jnp.imag(turned), 0.0), jnp.where(angled, jnp.real(turned), 1.0))
    total = jnp.sum(jnp.abs(error) * heard)
    for axis in (1, 2):
        both = heard & jnp.roll(heard, 1, axis)
        inner = jax.lax.slice_in_dim(both, 1, None, axis=axis)
        total += jnp.sum(jnp.abs(_wrapped(jnp.diff(error, axis=axis))) * inner)
    return Term(total, jnp.sum(heard).astype(total.dtype))


def multi_resolution_error(estimate: jax.Array, target: jax.Array, samples: jax.Array, sample_rate_hz: int) -> Term:
    """Spectral convergence plus mean absolute log magnitude ratio, at three window lengths.

    Args:
      estimate, target: float32 [B, N], unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal; each signal counts by its length.
      sample_rate_hz: of the samples.

    References:
      Parallel WaveGAN, arXiv 1910.11480, equations 3 to 6.
    """
    errors = []
    for window_ms in _RESOLUTIONS_MS:
        hop = max(1, round(sample_rate_hz * window_ms / 4000))
        resolution = STFTConfig(sample_rate_hz, window_samples=4 * hop, hop_samples=hop)
        # 3/8 is the mean square of the Hann window: noise of unit level has unit power in every bin.
        scale = (3 / 8 * resolution.window_samples) ** -0.5
        found, wanted = (
            jnp.sqrt(_power(stft(signal, resolution) * scale) + _LOG_FLOOR**2) for signal in (estimate, target)
        )
        frames = valid_frames(samples, resolution)
        mask = (jnp.arange(found.shape[1]) < frames[:, None])[..., None]
        bins = jnp.maximum(frames, 1) * resolution.bins
        difference = jnp.sum((found - wanted) ** 2 * mask, axis=(1, 2))
        size = jnp.maximum(jnp.sum(wanted**2 * mask, axis=(1, 2)), _QUIET**2 * bins)
        ratio = jnp.sum(jnp.abs(jnp.log(found) - jnp.log(wanted)) * mask, axis=(1, 2)) / bins
        # The constant keeps the gradient of the root finite where both are equal.
        errors.append(jnp.sqrt(difference / size + 1e-10) + ratio)
    weight = samples.astype(estimate.dtype)
    return Term(jnp.sum(sum(errors) / len(errors) * weight), jnp.sum(weight))


def negative_si_sdr(estimate: jax.Array, target: jax.Array, samples: jax.Array) -> Term:
    """Scale-invariant signal-to-distortion ratio, negative, in dB; signals whose target is silent do not count.

    Args:
      estimate, target: float32 [B, N], unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal.

    References:
      Le Roux et al. 2019, arXiv 1811.02508, equation 3; without removal of the mean. The upper end is a soft one, as
      in Wisdom et al. 2020, arXiv 2006.12701, equation 2.
    """
    energy = jnp.sum(target**2, axis=1)
    heard = energy > _LOG_FLOOR**2 * samples
    energy = jnp.where(heard, energy, 1.0)
    scaled = (jnp.sum(estimate * target, axis=1) / energy)[:, None] * target
    distortion = jnp.sum((estimate - scaled) ** 2, axis=1)
    kept = jnp.sum(scaled**2, axis=1)
    tiny = 1e-8 * energy
    ratio = (distortion + 10 ** (-_MOST_SI_SDR_DB / 10) * kept + tiny) / (kept + tiny)
    return Term(jnp.sum(10 * jnp.log10(ratio) * heard), jnp.sum(heard).astype(estimate.dtype))


def negative_segmental_snr(estimate: jax.Array, target: jax.Array, samples: jax.Array, sample_rate_hz: int) -> Term:
    """Segmental signal-to-noise ratio, negative, in dB: the mean over frames of 30 ms, every 7.5 ms.

    The limits of the metric, -10 and 35 dB, are soft ones here: a frame beyond them still has a gradient.

    Args:
      estimate, target: float32 [B, N], unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal; each counts by its frames.
      sample_rate_hz: of the samples.

    References:
      Hu, Loizou 2008, section II.C (`saf_jax.metrics`' SSNR).
    """
    hop = max(1, round(sample_rate_hz * _SEGMENT_HOP_SECONDS))
    fill = max(0, _SEGMENT_HOPS * hop - target.shape[1])
    fill += -(target.shape[1] + fill) % hop
    window = _SEGMENT_HOPS * hop
    taper = (0.5 - 0.5 * jnp.cos(2 * jnp.pi * jnp.arange(1, window + 1) / (window + 1))) ** 2

    def energies(signal: jax.Array) -> jax.Array:
        """[B, N] -> [B, frames]: the energy of each hop under each quarter of the taper, four quarters a frame."""
        hops = jnp.pad(signal, ((0, 0), (0, fill))).reshape(len(signal), -1, hop) ** 2
        quarters = hops @ taper.reshape(_SEGMENT_HOPS, hop).T
        count = quarters.shape[1] - _SEGMENT_HOPS + 1
        return sum(quarters[:, i : i + count, i] for i in range(_SEGMENT_HOPS))

    signal, noise = energies(target), energies(estimate - target)
    # Far below what counts: keeps the ratio of silence to silence finite, at 0 dB.
    tiny = 1e-10 * window
    least, most = (10 ** (limit / 10) for limit in (_LEAST_SEGMENT_SNR_DB, _MOST_SEGMENT_SNR_DB))
    ratio = (noise + signal / most + tiny) / (signal + least * noise + tiny)
    # As many frames as the metric takes.
    frames = jnp.maximum(samples // hop - _SEGMENT_HOPS, 0)
    mask = jnp.arange(ratio.shape[1]) < frames[:, None]
    return Term(jnp.sum(10 * jnp.log10(ratio) * mask), jnp.sum(frames).astype(estimate.dtype))


def perceptual_error(estimate: jax.Array, target: jax.Array, samples: jax.Array, sample_rate_hz: int) -> Term:
    """What PESQ would take away from 4.5 points, by `saf_jax.perceptual`; signals without speech do not count.

    Args:
      estimate, target: float32 [B, N], unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal.
      sample_rate_hz: of the samples.
    """
    heard = has_speech(target, samples)
    symmetric, asymmetric = disturbance(estimate, target, samples, sample_rate_hz)
    lost = 0.1 * symmetric + 0.0309 * asymmetric
    return Term(jnp.sum(jnp.where(heard, lost, 0.0)), jnp.sum(heard).astype(estimate.dtype))


def negative_wb_pesq(estimate: jax.Array, target: jax.Array, samples: jax.Array, sample_rate_hz: int) -> Term:
    """WB-PESQ, negated, by `saf_jax.perceptual`; signals without speech do not count.

    The same disturbance as in `perceptual_error`, weighed by what it means to the score: mixtures that can reach a
    good one count for more than those that are beyond help.

    Args:
      estimate, target: float32 [B, N], unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal.
      sample_rate_hz: of the samples.
    """
    heard = has_speech(target, samples)
    score = predicted_wb_pesq(disturbance(estimate, target, samples, sample_rate_hz))
    return Term(-jnp.sum(jnp.where(heard, score, 0.0)), jnp.sum(heard).astype(estimate.dtype))


def intelligibility_error(estimate: jax.Array, target: jax.Array, samples: jax.Array, sample_rate_hz: int) -> Term:
    """One minus STOI, by `saf_jax.intelligibility`; signals count by their speech, none with less than 0.4 s of it.

    Args:
      estimate, target: float32 [B, N], unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal.
      sample_rate_hz: of the samples.
    """
    correlation, segments = envelope_correlation(estimate, target, samples, sample_rate_hz)
    segments = segments * has_speech(target, samples)
    return Term(jnp.sum(jnp.where(segments > 0, segments - correlation, 0.0)), jnp.sum(segments).astype(target.dtype))


def envelope_error(estimate: jax.Array, target: jax.Array, samples: jax.Array, sample_rate_hz: int) -> Term:
    """Log-likelihood ratio, by `saf_jax.envelope`; signals count by their frames, those without speech do not.

    Args:
      estimate, target: float32 [B, N], unit level, 0 beyond `samples`.
      samples: int32 [B], valid samples of each signal.
      sample_rate_hz: of the samples.
    """
    ratio, frames = log_likelihood_ratio(estimate, target, samples, sample_rate_hz)
    heard = has_speech(target, samples)
    return Term(jnp.sum(jnp.where(heard, ratio, 0.0)), jnp.sum(frames * heard).astype(estimate.dtype))


_TERMS: dict[str, Callable[[Signals, Config], Term]] = {
    "complex": lambda s, _: complex_error(s.estimate, s.target, s.frames),
    "magnitude": lambda s, _: magnitude_error(s.estimate, s.target, s.frames),
    "time": lambda s, _: time_error(s.estimated_samples, s.target_samples, s.samples),
    "consistency": lambda s, _: consistency_error(s.estimate, s.resynthesised, s.frames),
    "multi_resolution": lambda s, config: multi_resolution_error(
        s.estimated_samples, s.target_samples, s.samples, config.stft.sample_rate_hz
    ),
    "phase": lambda s, _: phase_error(s.estimate, s.target, s.frames),
    "si_sdr": lambda s, _: negative_si_sdr(s.estimated_samples, s.target_samples, s.samples),
    "segmental": lambda s, config: negative_segmental_snr(
        s.estimated_samples, s.target_samples, s.samples, config.stft.sample_rate_hz
    ),
    "perceptual": lambda s, config: perceptual_error(
        s.estimated_samples, s.target_samples, s.samples, config.stft.sample_rate_hz
    ),
    "wb_pesq": lambda s, config: negative_wb_pesq(
        s.estimated_samples, s.target_samples, s.samples, config.stft.sample_rate_hz
    ),
    "intelligibility": lambda s, config: intelligibility_error(
        s.estimated_samples, s.target_samples, s.samples, config.stft.sample_rate_hz
    ),
    "envelope": lambda s, config: envelope_error(
        s.estimated_samples, s.target_samples, s.samples, config.stft.sample_rate_hz
    ),
}


def loss_terms(signals: Signals, config: Config) -> dict[str, Term]:
    """All terms whose weight is not 0, by their names in `LossConfig`."""
    # Several terms take spectra by matrix products, which some GPUs do with 10 bits unless told otherwise.
    with jax.default_matmul_precision("highest"):
        return {name: term(signals, config) for name, term in _TERMS.items() if getattr(config.loss, name)}


def weighted_sum(terms: dict[str, Term], config: LossConfig) -> jax.Array:
    """Loss to minimise, from terms that are summed over everything that counts."""
    return sum(getattr(config, name) * term.total / jnp.maximum(term.count, 1) for name, term in terms.items())


def has_speech(target: jax.Array, samples: jax.Array) -> jax.Array:
    """Whether a target, float32 [B, N] at unit level of the noisy signal, is there to be heard: bool [B]."""
    return jnp.sum(target**2, axis=1) > SILENCE * samples


def valid_frames(samples: jax.Array, config: STFTConfig) -> jax.Array:
    """Frames that signals of these lengths have: int32 [B] -> int32 [B]; an empty signal has none."""
    return jnp.where(samples > 0, config.frames(samples), 0)


def _masked(values: jax.Array, frames: jax.Array) -> Term:
    mask = jnp.arange(values.shape[1]) < frames[:, None]
    count = jnp.sum(frames).astype(values.dtype) * values.shape[2]
    return Term(jnp.sum(values * mask[:, :, None]), count)


def _power(spectrum: jax.Array) -> jax.Array:
    return jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2


def _safe_magnitude(spectrum: jax.Array) -> jax.Array:
    """Magnitude with a finite gradient at 0."""
    return jnp.sqrt(_power(spectrum) + 1e-9)


def _wrapped(angle: jax.Array) -> jax.Array:
    """The same angle in [-pi, pi]."""
    return angle - 2 * jnp.pi * jax.lax.stop_gradient(jnp.round(angle / (2 * jnp.pi)))
