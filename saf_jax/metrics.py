"""The field's metrics for enhanced speech, on numpy arrays: WB-PESQ, CSIG, CBAK, COVL, SSNR, STOI, SI-SDR.

Every function takes the clean reference and the signal to judge as float samples [N] with full scale 1. WB-PESQ comes
from the package `pesq`; the composite measures and STOI stand in `saf_jax.composite_measures` and `saf_jax.stoi`.

A metric without a value for a pair of signals (a silent reference, a recording that is too short, an infinite ratio)
raises `UndefinedMetricError`; `score` notes the reason and gives NaN for that metric alone.

References:
  ITU-T P.862.2, 2007 (WB-PESQ). Le Roux et al., ICASSP 2019 (SI-SDR).
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np

from saf_jax.composite_measures import (
    SAMPLE_RATE_HZ,
    Composite,
    CompositeScale,
    UndefinedMetricError,
    checked_pair,
    composite,
    llr,
    ssnr_db,
    wss,
)
from saf_jax.errors import UserError
from saf_jax.stoi import stoi

METRICS = ("wb_pesq", "csig", "cbak", "covl", "ssnr_db", "stoi_percent", "si_sdr_db")
"""Names of the metrics, in the order of the field's tables."""

_EPS = float(np.finfo(np.float64).eps)

__all__ = [
    "METRICS",
    "SAMPLE_RATE_HZ",
    "Composite",
    "CompositeScale",
    "Scores",
    "UndefinedMetricError",
    "check_packages",
    "composite",
    "llr",
    "score",
    "si_sdr_db",
    "ssnr_db",
    "stoi_percent",
    "wb_pesq",
    "wss",
]


@dataclasses.dataclass(frozen=True)
class Scores:
    """All metrics of one pair; NaN where a metric has no value, with the reason in `failures`.

    Attributes:
      wb_pesq: wide-band PESQ as mean opinion score, 1.0 to 4.64.
      csig: distortion of the speech, 1 to 5.
      cbak: intrusiveness of the background, 1 to 5.
      covl: overall quality, 1 to 5.
      ssnr_db: segmental signal-to-noise ratio, -10 to 35 dB.
      stoi_percent: short-time objective intelligibility, at most 100 %.
      si_sdr_db: scale-invariant signal-to-distortion ratio.
      failures: reason by name of metric, for those that are NaN.
    """

    wb_pesq: float
    csig: float
    cbak: float
    covl: float
    ssnr_db: float
    stoi_percent: float
    si_sdr_db: float
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)


def score(
    clean: np.ndarray,
    enhanced: np.ndarray,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    *,
    composite_scale: CompositeScale = "standard",
) -> Scores:
    """All metrics of one pair of signals.

    Args:
      clean: reference, float [N], full scale 1.
      enhanced: signal to judge, float [N].
      sample_rate_hz: must be 16000, the rate of the published tables.
      composite_scale: "standard", or "divided" to feed WSS with samples / 32768. Some published tables do so, and their
        CSIG, CBAK and COVL come out 0.1 to 0.24 higher on the same audio.

    Returns:
      The values; NaN with a reason in `failures` for a metric that has none.

    Raises:
      UserError: another sample rate, different lengths, NaN or infinite samples, or a missing package.
    """
    if sample_rate_hz != SAMPLE_RATE_HZ:
        raise UserError(f"sample_rate_hz={sample_rate_hz}: the metrics need {SAMPLE_RATE_HZ} Hz: resample first")
    if composite_scale not in get_args(CompositeScale):
        raise UserError(f"composite_scale={composite_scale!r}: must be one of {', '.join(get_args(CompositeScale))}")
    clean, enhanced = checked_pair(clean, enhanced)
    values: dict[str, float] = {}
    failures: dict[str, str] = {}

    def attempt(name: str, compute: Callable[[], float]) -> None:
        try:
            value = compute()
            if not math.isfinite(value):
                raise UndefinedMetricError(f"the value is {value}")
            values[name] = value
        except UndefinedMetricError as error:
            values[name] = math.nan
            failures[name] = str(error)

    attempt("wb_pesq", lambda: wb_pesq(clean, enhanced, sample_rate_hz))
    attempt("ssnr_db", lambda: ssnr_db(clean, enhanced, sample_rate_hz))
    if "wb_pesq" in failures or "ssnr_db" in failures:
        cause = failures.get("ssnr_db") or f"WB-PESQ has no value ({failures['wb_pesq']})"
        values.update(dict.fromkeys(Composite._fields, math.nan))
        failures.update(dict.fromkeys(Composite._fields, cause))
    else:
        llr_value = llr(clean, enhanced, sample_rate_hz)
        wss_value = wss(clean, enhanced, sample_rate_hz, composite_scale=composite_scale)
        combined = composite(values["wb_pesq"], llr_value, wss_value, values["ssnr_db"])
        for name in Composite._fields:
            attempt(name, functools.partial(getattr, combined, name))
    attempt("stoi_percent", lambda: stoi_percent(clean, enhanced, sample_rate_hz))
    attempt("si_sdr_db", lambda: si_sdr_db(clean, enhanced))
    return Scores(**values, failures=failures)


def wb_pesq(clean: np.ndarray, enhanced: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """Wide-band PESQ (ITU-T P.862.2) as a mean opinion score, through the package `pesq`.

    Args:
      clean: reference, float [N].
      enhanced: signal to judge, float [N].
      sample_rate_hz: must be 16000.

    Raises:
      UndefinedMetricError: no speech in the reference, or less than a quarter of a second.
      UserError: the package is missing, or another sample rate.
    """
    check_packages()
    import pesq

    if sample_rate_hz != SAMPLE_RATE_HZ:
        raise UserError(f"sample_rate_hz={sample_rate_hz}: WB-PESQ needs {SAMPLE_RATE_HZ} Hz: resample first")
    clean, enhanced = checked_pair(clean, enhanced)
    for name, samples in (("clean", clean), ("enhanced", enhanced)):
        if not samples.any():
            raise UndefinedMetricError(f"the {name} signal is digital silence")
    try:
        return float(pesq.pesq(sample_rate_hz, clean, enhanced, "wb"))
    except pesq.NoUtterancesError as error:
        raise UndefinedMetricError("PESQ finds no utterance in the clean signal") from error
    except pesq.BufferTooShortError as error:
        raise UndefinedMetricError("shorter than the quarter of a second that PESQ needs") from error
    except (pesq.PesqError, ValueError) as error:
        # ValueError: the package stumbles over a status of its own that is NaN.
        raise UndefinedMetricError(f"PESQ failed ({error})") from error


def check_packages() -> None:
    """Raises `UserError` where a package that the metrics need is missing."""
    if importlib.util.find_spec("pesq") is None:
        raise UserError("WB-PESQ needs the package pesq (and a C compiler): pip install 'saf-jax[eval]'")


def stoi_percent(clean: np.ndarray, enhanced: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """Short-time objective intelligibility in percent (classic, not extended).

    Raises:
      UndefinedMetricError: less than 30 frames (about 0.4 s) of speech are left once silent frames are taken out.

    References:
      Taal, Hendriks, Heusdens, Jensen, IEEE TASLP 19 (7), 2011.
    """
    clean, enhanced = checked_pair(clean, enhanced)
    value = stoi(clean, enhanced, sample_rate_hz) if clean.any() else None
    if value is None:
        raise UndefinedMetricError("too little speech for STOI: it needs 30 frames (0.4 s) that are not silent")
    return 100.0 * value


def si_sdr_db(clean: np.ndarray, enhanced: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, without removal of the mean.

    Raises:
      UndefinedMetricError: a signal is silent, or the ratio is infinite.

    References:
      Le Roux, Wisdom, Erdogan, Hershey: "SDR - half-baked or well done?", ICASSP 2019, equation 5.
    """
    clean, enhanced = checked_pair(clean, enhanced)
    energy = np.dot(clean, clean)
    if energy == 0:
        raise UndefinedMetricError("the clean signal is digital silence")
    if not enhanced.any():
        raise UndefinedMetricError("the enhanced signal is digital silence")
    target = (np.dot(enhanced, clean) / energy) * clean
    distortion = enhanced - target
    signal, noise = np.dot(target, target), np.dot(distortion, distortion)
    # Rounding leaves about eps of a signal that only differs by a factor: 290 dB and more mean "the same".
    if noise <= _EPS**2 * signal * len(clean):
        raise UndefinedMetricError("infinite: the signal equals the clean one up to a factor")
    if signal == 0:
        raise UndefinedMetricError("minus infinity: the signal has nothing of the clean one")
    return float(10.0 * np.log10(signal / noise))
