"""Active speech level: how loud speech is while somebody speaks, pauses left out.

References:
  ITU-T Recommendation P.56 (12/2011), method B.
"""

import math

import numpy as np

TIME_CONSTANT_SECONDS = 0.03
HANGOVER_SECONDS = 0.2
MARGIN_DB = 15.9
# Thresholds are a factor of 2 apart, from full scale down to half a step of 16-bit samples.
_THRESHOLDS = 2.0 ** np.arange(-16.0, 1.0)
_BLOCK = 1 << 22


def active_level(samples: np.ndarray, sample_rate_hz: int) -> tuple[float, float]:
    """Active speech level and activity factor.

    The envelope of the samples is compared with thresholds that are 6.02 dB apart. For each threshold the level of the
    signal over the time that the envelope lies above it (and 0.2 s longer) follows; the active level is the one that
    lies 15.9 dB above its own threshold, found by linear interpolation in dB.

    Args:
      samples: float [N], full scale 1.
      sample_rate_hz: rate of `samples`.

    Returns:
      Level in dB relative to a square wave of full scale (a full-scale sine has -3.01 dB), and the part of the time
      that is active, 0 to 1. Silence, and a signal that never rises above its own noise by the margin, have the level
      -inf and the activity 0.

    References:
      ITU-T P.56 (12/2011), method B, annex B.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 1:
        raise ValueError(f"samples must be [N], not {list(samples.shape)}")
    energy = _energy(samples)
    if energy <= 0:
        return -math.inf, 0.0
    active_samples = _active_samples(samples, sample_rate_hz)
    reached = active_samples > 0
    if not reached.any():
        return -math.inf, 0.0
    levels = 10 * np.log10(energy / active_samples[reached])
    margins = levels - 20 * np.log10(_THRESHOLDS[reached])
    # The margin falls as the threshold rises; the first threshold below the wanted margin ends the search.
    below = np.flatnonzero(margins <= MARGIN_DB)
    if len(below) == 0:
        level = levels[-1]
    elif below[0] == 0:
        level = levels[0]
    else:
        high = int(below[0])
        part = (margins[high - 1] - MARGIN_DB) / (margins[high - 1] - margins[high])
        level = levels[high - 1] + part * (levels[high] - levels[high - 1])
    return float(level), float(min(1.0, energy / len(samples) / 10 ** (level / 10)))


def active_level_db(samples: np.ndarray, sample_rate_hz: int) -> float:
    """Active speech level alone, see `active_level`."""
    return active_level(samples, sample_rate_hz)[0]


def rms_db(samples: np.ndarray) -> float:
    """Level over all samples, in dB relative to a square wave of full scale; -inf for silence."""
    power = _energy(samples) / max(1, len(samples))
    return 10 * math.log10(power) if power > 0 else -math.inf


def snr_db(clean: np.ndarray, noise: np.ndarray, sample_rate_hz: int) -> float:
    """Signal-to-noise ratio as Voice Bank + DEMAND states it: P.56 level of the speech minus RMS level of the noise."""
    return active_level_db(clean, sample_rate_hz) - rms_db(noise)


def _energy(samples: np.ndarray) -> float:
    # Not a dot product: BLAS would wake its threads for it and keep the cores from the training.
    return float(np.square(samples, dtype=np.float64).sum())


def _active_samples(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """How many samples count as active at each threshold: [N] -> [thresholds]; long signals go in blocks."""
    hangover = round(HANGOVER_SECONDS * sample_rate_hz)
    if len(samples) <= _BLOCK:
        return _samples_above(_envelope(samples, sample_rate_hz), hangover)
    # The smoothing has died away after so long, and the hangover reaches back beyond that.
    before = math.ceil(26 * TIME_CONSTANT_SECONDS * sample_rate_hz)
    total = 0
    for start in range(0, len(samples), _BLOCK):
        first = max(0, start - hangover)
        lead = max(0, first - before)
        envelope = _envelope(samples[lead : start + _BLOCK], sample_rate_hz)[first - lead :]
        # Less what the part before the block counts alone.
        total = total + _samples_above(envelope, hangover) - _samples_above(envelope[: start - first], hangover)
    return total


def _envelope(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Rectified samples, smoothed twice with a time constant of 30 ms: [N] -> [N]."""
    # Both first-order filters as one convolution, in blocks of their response (26 time constants: below 1e-10).
    # numpy alone: importing scipy.signal would take a scoring process longer than its first files.
    decay = math.exp(-1.0 / (TIME_CONSTANT_SECONDS * sample_rate_hz))
    size = 2 ** math.ceil(math.log2(26 * TIME_CONSTANT_SECONDS * sample_rate_hz + 1))
    steps = np.arange(size)
    response = np.fft.rfft((1 - decay) ** 2 * (steps + 1) * decay**steps, 2 * size)
    blocks = -(-len(samples) // size)
    padded = np.zeros((blocks + 1) * size)
    padded[size : size + len(samples)] = np.abs(samples)
    # Each block with the one before it: the second half of the product is free of wrap-around.
    pairs = np.lib.stride_tricks.sliding_window_view(padded, 2 * size)[::size]
    smooth = np.fft.irfft(np.fft.rfft(pairs, axis=1) * response, axis=1)[:, size:]
    return np.maximum(smooth.reshape(-1)[: len(samples)], 0.0)


def _samples_above(envelope: np.ndarray, hangover_samples: int) -> np.ndarray:
    """How many samples lie above each threshold or within the hangover after such a sample: [N] -> [thresholds]."""
    # A sample counts when the largest envelope of the last `hangover_samples` and itself reaches the threshold. That
    # maximum is the larger of two running ones: to the end of the previous block, and from the start of this block.
    size = hangover_samples + 1
    padded = np.zeros((-(-len(envelope) // size) + 1) * size)
    padded[size : size + len(envelope)] = envelope
    blocks = padded.reshape(-1, size)
    rising = np.maximum.accumulate(blocks, axis=1).reshape(-1)
    falling = np.maximum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].reshape(-1)
    places = size + np.arange(len(envelope))
    held = np.maximum(falling[places - size + 1], rising[places])
    # Thresholds are powers of 2: the binary exponent counts those that a value reaches.
    # Digital silence reaches none, though the exponent of 0 is 0.
    exponents = np.where(held > 0, np.frexp(held)[1], -16)
    counts = np.bincount(np.clip(exponents + 16, 0, len(_THRESHOLDS)), minlength=len(_THRESHOLDS) + 1)
    return counts[::-1].cumsum()[::-1][1:]
