"""Mixing speech and noise: pure functions of arrays, and the draw of a whole random mixture.

All signals are float32 [N] at one rate. Randomness comes only from the given generator.

References:
  C. Valentini-Botinhao et al., "Investigating RNN-based speech enhancement methods for noise-robust text-to-speech",
  SSW 2016 (Voice Bank + DEMAND: ratio of P.56 active speech level to noise level).
"""

import functools
import math
from typing import NamedTuple, Protocol

import numpy as np

from saf_jax.config import MixingConfig
from saf_jax.data import noises
from saf_jax.data.active_level import active_level_db, rms_db

EXAMPLES_VERSION = 2
"""Changes when the same seed and recordings give other training examples: runs of a sweep are known by it."""

# Speech below this level is taken for silence: there is nothing to hold a ratio to.
_SILENCE_DB = -80.0
_USUAL_LEVEL_DB = -26.0
_PEAK = 0.99
_OCTAVES = 11


class Mixture(NamedTuple):
    """A mixture and its parts.

    Attributes:
      clean: target, float32 [N]: the dry speech, or its early reverberation.
      noisy: float32 [N].
      noise: what was added to the speech (late reverberation is not part of it), float32 [N].
      snr_db: P.56 active level of `clean` minus RMS level of `noise`, before clipping; -inf without speech.
      description: what was drawn.
    """

    clean: np.ndarray
    noisy: np.ndarray
    noise: np.ndarray
    snr_db: float
    description: str


class Pools(Protocol):
    """Where the material of random mixtures comes from. Each method also names what it took."""

    has_rooms: bool
    has_noise: bool

    def noise(self, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, str]:
        """A piece of recorded noise, [samples]."""

    def voice(self, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, str]:
        """A piece of speech for babble, [samples]."""

    def room(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """A room impulse response."""


def without_offset(samples: np.ndarray) -> np.ndarray:
    """The samples less their mean where that counts in their level (0.04 dB and more): an offset is not heard.

    Cheap recorders leave one. Everything else stays as it is to the bit.
    """
    mean = float(samples.mean(dtype=np.float64)) if len(samples) else 0.0
    power = float(np.square(samples, dtype=np.float64).mean()) if len(samples) else 0.0
    return samples - np.float32(mean) if mean**2 > 0.01 * power else samples


def gain_for_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float, sample_rate_hz: int) -> float:
    """Factor for the noise that brings P.56 active level of the speech minus RMS level of the noise to `snr_db`.

    Args:
      speech: the reference, [N].
      noise: [N].
      snr_db: wanted ratio.
      sample_rate_hz: rate of both.

    Raises:
      ValueError: one of them is silent, so that no factor exists.
    """
    speech_db, noise_db = active_level_db(speech, sample_rate_hz), rms_db(noise)
    if not math.isfinite(speech_db) or not math.isfinite(noise_db):
        raise ValueError("silence has no level to hold a ratio to")
    return 10 ** ((speech_db - noise_db - snr_db) / 20)


def reverberate(
    dry: np.ndarray, impulse_response: np.ndarray, sample_rate_hz: int, early_ms: float = 50.0
) -> tuple[np.ndarray, np.ndarray]:
    """Puts a signal into a room.

    The sound's travel time is left out: the direct sound stays where it was, and it keeps the level that it has in the
    impulse response scaled to an early part of energy 1.

    Args:
      dry: [N].
      impulse_response: [M], at the same rate.
      sample_rate_hz: rate of both.
      early_ms: how long after the direct sound a reflection counts as early.

    Returns:
      The reverberant signal and its early part, [N] each.
    """
    direct = int(np.argmax(np.abs(impulse_response)))
    response = impulse_response[direct:].astype(np.float32)
    early = response[: max(1, round(early_ms * sample_rate_hz / 1000))]
    scale = np.float32(1 / max(1e-9, math.sqrt(float(np.sum(np.square(early, dtype=np.float64))))))
    spectrum, size = _transform(dry, len(response))
    return tuple(_convolved(spectrum, part * scale, size, len(dry)) for part in (response, early))


class Colour(NamedTuple):
    """What a microphone does to a sound: gains at octaves from 31 Hz up, in dB, and a limit of the band (0: none)."""

    octave_gains_db: np.ndarray
    band_limit_hz: float = 0.0

    def gains(self, size: int, sample_rate_hz: int) -> np.ndarray:
        """Gains at the bins of a real transform of `size` samples, float32 [size / 2 + 1]."""
        left, blend = _octave_places(size, sample_rate_hz)
        knots = np.asarray(self.octave_gains_db, np.float32) * np.float32(math.log(10) / 20)
        gains = np.exp(knots[left] * (1 - blend) + knots[left + 1] * blend)
        if self.band_limit_hz > 0:
            # Down to nothing over a sixth of an octave.
            start, stop = (int(self.band_limit_hz * edge * size / sample_rate_hz) for edge in (1.0, 1.12))
            fall = (1 + np.cos(np.linspace(0, np.pi, stop - start, dtype=np.float32))) / 2
            gains[start:stop] *= fall[: max(0, len(gains) - start)]
            gains[stop:] = 0
        return gains


def draw_colour(rng: np.random.Generator, equaliser_db: float, band_limit_hz: float = 0.0) -> Colour:
    """A random smooth equaliser with gains up to +-`equaliser_db`, and a band limit."""
    return Colour(rng.uniform(-equaliser_db, equaliser_db, _OCTAVES), band_limit_hz)


def colour_all(signals: list[np.ndarray], colour: Colour, sample_rate_hz: int) -> list[np.ndarray]:
    """Filters signals of one length alike, without delay."""
    samples = len(signals[0])
    spectra, size = _transform(np.stack(signals), 1 + sample_rate_hz // 10)
    return list(_inverse(spectra * colour.gains(size, sample_rate_hz), size)[..., :samples])


def change_speed(samples: np.ndarray, factor: float, length: int) -> np.ndarray:
    """Plays faster (factor above 1) or slower, pitch included: [M] -> [length], repeated where it is too short."""
    import soxr

    # soxr looks at the ratio of the rates only.
    changed = soxr.resample(samples, factor, 1.0, quality="HQ")
    return changed[:length] if len(changed) >= length else np.resize(changed, length)


def clip(noisy: np.ndarray, part: float) -> np.ndarray:
    """Clips so that about this part of the samples lies at the limit."""
    limit = float(np.quantile(np.abs(noisy), 1 - part))
    return np.clip(noisy, -limit, limit) if limit > 0 else noisy


def transform_noise(rng: np.random.Generator, noise: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Makes another noise of a recorded one: speed, direction of time, spectrum, gusts, each in half of the cases.

    Args:
      rng: source of the draws.
      noise: [M], preferably half as long again as the result.
      sample_rate_hz: its rate.

    Returns:
      [2/3 M].
    """
    length = len(noise) * 2 // 3
    if rng.random() < 0.5:
        noise = change_speed(noise, float(np.exp(rng.uniform(math.log(0.67), math.log(1.5)))), length)
    noise = noise[:length]
    if rng.random() < 0.5:
        noise = noise[::-1]
    if rng.random() < 0.5:
        noise = colour_all([noise], draw_colour(rng, 10.0), sample_rate_hz)[0]
    if rng.random() < 0.5:
        depth = rng.uniform(0.2, 0.8)
        noise = noise * np.exp(depth * noises.slow_curve(rng, length, sample_rate_hz, rng.uniform(0.3, 4.0)))
    return np.ascontiguousarray(noise, np.float32)


def interrupt(rng: np.random.Generator, noise: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Lets a noise be there only for a part of the time, with short fades."""
    samples = len(noise)
    length = int(samples * rng.uniform(0.2, 0.7))
    start = int(rng.integers(0, samples - length + 1))
    fade = max(1, int(sample_rate_hz * rng.uniform(0.005, 0.1)))
    place = np.arange(samples)
    gate = np.clip((place - start) / fade, 0, 1) * np.clip((start + length - place) / fade, 0, 1)
    return (noise * gate).astype(np.float32)


def draw_noise(
    rng: np.random.Generator, config: MixingConfig, pools: Pools, samples: int, sample_rate_hz: int
) -> tuple[np.ndarray, list[str]]:
    """One noise or several at once, [samples] with the louder one's RMS near 1, and what they are."""
    total, names = np.zeros(samples, np.float32), []
    while True:
        noise, name = _draw_one_noise(rng, config, pools, samples, sample_rate_hz)
        if rng.random() < config.intermittent:
            noise, name = interrupt(rng, noise, sample_rate_hz), name + " at times"
        total += noise * np.float32(_unit_gain(noise) * 10 ** (-rng.uniform(0, 12 if names else 0) / 20))
        names.append(name)
        if len(names) >= config.most_noises or rng.random() >= config.more_noises:
            break
    if rng.random() < config.impulses:
        total += noises.knocks(rng, samples, sample_rate_hz) * np.float32(10 ** (rng.uniform(-12, 3) / 20))
        names.append("knocks")
    return total, names


def draw_mixture(
    rng: np.random.Generator, config: MixingConfig, speech: np.ndarray, pools: Pools, sample_rate_hz: int
) -> Mixture:
    """Draws a whole mixture around a piece of speech; what may happen is said by `MixingConfig`.

    The order is that of a recording: the speech sounds in a room, the noise joins it, a microphone colours both, the
    level is set, the converter clips.

    Args:
      rng: source of all draws.
      config: probabilities and bounds.
      speech: dry, [N].
      pools: noises, voices and rooms.
      sample_rate_hz: rate of everything.
    """
    samples = len(speech)
    near_clean = rng.random() < config.near_clean
    snr_db = float(rng.uniform(*(config.near_clean_snr_db if near_clean else config.snr_db)))
    level_db = float(rng.uniform(*config.level_db)) if rng.random() < config.level else None
    said = ["speech"]
    if rng.random() < config.speech_free or rms_db(speech) < _SILENCE_DB:
        speech, said = np.zeros(samples, np.float32), ["no speech"]
    noise, names = draw_noise(rng, config, pools, samples, sample_rate_hz)
    clean = wet = speech
    if pools.has_rooms and rng.random() < config.reverberation:
        response, name = pools.room(rng)
        wet, clean = reverberate(speech, response, sample_rate_hz, config.early_ms)
        said.append(f"room {name}")
        if rng.random() < config.noise_reverberation:
            noise = reverberate(noise, response, sample_rate_hz)[0]
    equaliser_db = config.equaliser_db if rng.random() < config.equaliser else 0.0
    band_limit_hz = float(rng.uniform(*config.band_limit_hz)) if rng.random() < config.band_limit else 0.0
    if equaliser_db or band_limit_hz:
        colour = draw_colour(rng, equaliser_db, band_limit_hz)
        dry_room = wet is clean
        clean, noise, *wet = colour_all([clean, noise] if dry_room else [clean, noise, wet], colour, sample_rate_hz)
        wet = clean if dry_room else wet[0]
        said.append("coloured")
    if not math.isfinite(rms_db(noise)):
        noise, names = noises.hiss(rng, samples, sample_rate_hz), [*names, "hiss"]
    if level_db is not None and math.isfinite(rms_db(clean)):
        gain = np.float32(10 ** ((level_db - rms_db(clean)) / 20))
        clean, wet = clean * gain, wet * gain
    # Measured after the last gain: P.56 compares with fixed thresholds, so that levels do not follow gains exactly.
    try:
        noise = noise * np.float32(gain_for_snr(clean, noise, snr_db, sample_rate_hz))
    except ValueError:
        # No speech to hold the ratio to: the noise is as loud as it would be beside speech of the drawn level.
        speech_db = _USUAL_LEVEL_DB if level_db is None else level_db
        noise = noise * np.float32(10 ** ((speech_db - rms_db(noise) - snr_db) / 20))
        clean = wet = np.zeros(samples, np.float32)
        snr_db = -math.inf
    noisy = wet + noise
    peak = max(float(np.abs(noisy).max()), float(np.abs(clean).max()))
    if peak > _PEAK:
        clean, noisy, noise = (signal * np.float32(_PEAK / peak) for signal in (clean, noisy, noise))
        snr_db = active_level_db(clean, sample_rate_hz) - rms_db(noise)
    if rng.random() < config.clipping:
        noisy = clip(noisy, float(rng.uniform(*config.clipping_part)))
        said.append("clipped")
    return Mixture(clean, noisy, noise, snr_db, f"{', '.join(said)} + {', '.join(names)} at {snr_db:.1f} dB")


def _draw_one_noise(
    rng: np.random.Generator, config: MixingConfig, pools: Pools, samples: int, sample_rate_hz: int
) -> tuple[np.ndarray, str]:
    kind = rng.random()
    if kind < config.babble:
        voices = [pools.voice(rng, samples)[0] for _ in range(int(rng.integers(3, 9)))]
        return noises.babble(rng, voices, samples), f"babble of {len(voices)}"
    if kind < config.babble + config.generated or not pools.has_noise:
        name = str(rng.choice(list(noises.KINDS)))
        return noises.KINDS[name](rng, samples, sample_rate_hz), f"generated {name}"
    if rng.random() < config.noise_transform:
        noise, name = pools.noise(rng, samples * 3 // 2 + 2)
        return transform_noise(rng, noise, sample_rate_hz)[:samples], f"changed {name}"
    return pools.noise(rng, samples)


@functools.lru_cache(maxsize=32)
def _octave_places(size: int, sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """For each bin the octave below it, and how far it lies on the way to the next one (smoothed)."""
    frequencies = np.maximum(np.fft.rfftfreq(size, 1 / sample_rate_hz), 31.0)
    place = np.clip(np.log2(frequencies / 31.0), 0, _OCTAVES - 1.001)
    left = place.astype(np.int64)
    return left, ((1 - np.cos(np.pi * (place - left))) / 2).astype(np.float32)


def _unit_gain(signal: np.ndarray) -> float:
    """The factor that brings a signal to RMS 1; 1 for silence."""
    level = rms_db(signal)
    return 10 ** (-level / 20) if math.isfinite(level) else 1.0


def _transform(signals: np.ndarray, extra: int) -> tuple[np.ndarray, int]:
    """Spectra of [..., N], padded by at least `extra` zeros to a fast length."""
    from scipy.fft import next_fast_len, rfft

    size = next_fast_len(signals.shape[-1] + extra, real=True)
    return rfft(signals, size), size


def _inverse(spectra: np.ndarray, size: int) -> np.ndarray:
    from scipy.fft import irfft

    return irfft(spectra, size)


def _convolved(spectrum: np.ndarray, response: np.ndarray, size: int, samples: int) -> np.ndarray:
    from scipy.fft import rfft

    return _inverse(spectrum * rfft(response, size), size)[:samples]
