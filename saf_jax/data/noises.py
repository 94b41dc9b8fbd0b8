"""Kinds of noise made by computation: hiss, hum, rain, machinery, keys, music, birds, wind, drill, surf, fire.

Every function takes a generator of random numbers, a length and a rate, and gives float32 [N] with RMS 1. All draws
come from the generator, so that the same seed gives the same noise.
"""

from collections.abc import Callable

import numpy as np

Noise = Callable[[np.random.Generator, int, int], np.ndarray]


def hiss(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Steady noise between white (0 dB per octave) and brown (-6 dB per octave), with a broad bump or dip."""
    tilt = rng.uniform(0.0, 1.0)
    bump_hz, bump = np.exp(rng.uniform(np.log(300), np.log(5000))), rng.uniform(-1.0, 1.0)

    def gain(frequency: np.ndarray) -> np.ndarray:
        return (frequency / 1000) ** -tilt * np.exp(bump * np.exp(-(np.log2(frequency / bump_hz) ** 2)))

    return _unit(_shaped(rng, samples, sample_rate_hz, gain))


def hum(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Mains hum: harmonics of 50 or 60 Hz that waver a little, over faint hiss."""
    base_hz = rng.choice([50.0, 60.0]) * rng.uniform(0.995, 1.005)
    count = int(rng.integers(8, 40))
    order = np.arange(1, count + 1)
    amplitudes = order ** -rng.uniform(0.2, 1.2) * rng.uniform(0.1, 1.0, count)
    # Odd or even harmonics dominate, depending on the rectifier.
    amplitudes[rng.integers(0, 2) :: 2] *= rng.uniform(0.1, 1.0)
    tones = _harmonics(rng, samples, sample_rate_hz, base_hz, amplitudes, 0.0005)
    return _unit(tones + 0.03 * hiss(rng, samples, sample_rate_hz))


def rain(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Drops that ring at random pitches, over the hiss of the rain further off."""
    drops = _impulses(rng, samples, rng.uniform(40, 300) / sample_rate_hz, heaviness=0.8)
    near = _resonances(drops, sample_rate_hz, _pitches(rng, 800, 6000, 3), rng.uniform(0.002, 0.008, 3))
    far = _shaped(rng, samples, sample_rate_hz, lambda f: np.minimum(1.0, f / 600) * np.minimum(1.0, 4000 / f))
    return _unit(_unit(near) + rng.uniform(0.2, 1.0) * _unit(far))


def machinery(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """A machine: noise that beats at the speed of its shaft, and the tones of the shaft."""
    turns_hz = rng.uniform(5, 35)
    band = rng.uniform(200, 2500)
    noise = _shaped(rng, samples, sample_rate_hz, lambda f: 1 / (1 + ((f - band) / (0.6 * band)) ** 2))
    phase = 2 * np.pi * turns_hz * (np.arange(samples) / sample_rate_hz) + rng.uniform(0, 6)
    beat = np.exp(rng.uniform(0.5, 2.0) * np.cos(phase) + rng.uniform(0, 0.8) * np.cos(2 * phase + 1))
    amplitudes = rng.uniform(0, 1, 12) / np.arange(1, 13)
    tones = _harmonics(rng, samples, sample_rate_hz, turns_hz * rng.integers(2, 8), amplitudes, 0.002)
    return _unit(_unit(noise * beat) + rng.uniform(0.1, 0.8) * tones)


def keys(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Keys: pairs of short clicks (down and up), each with its own ring, over faint room noise."""
    seconds = samples / sample_rate_hz
    times = np.cumsum(rng.gamma(2.0, 1 / (2 * rng.uniform(4, 9)), int(seconds * 12) + 8))
    times = np.concatenate([times, times + rng.uniform(0.05, 0.12, len(times))]) - rng.uniform(0, 0.3)
    clicks = np.zeros(samples)
    places = (times * sample_rate_hz).astype(int)
    strengths = np.exp(rng.normal(0, 0.5, len(times))) * np.repeat([1.0, 0.4], len(times) // 2)
    inside = (places >= 0) & (places < samples)
    np.add.at(clicks, places[inside], strengths[inside])
    body = _resonances(clicks, sample_rate_hz, _pitches(rng, 500, 5500, 4), rng.uniform(0.001, 0.006, 4))
    burst = np.convolve(clicks, rng.normal(size=64) * np.exp(-np.arange(64) / 12))[:samples]
    return _unit(_unit(body) + _unit(burst) + rng.uniform(0.02, 0.15) * hiss(rng, samples, sample_rate_hz))


def music(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Chords of plucked strings that follow each other in steady time."""
    beat = int(sample_rate_hz * rng.uniform(0.25, 0.6))
    root = rng.uniform(98, 196)
    bright = rng.uniform(0.4, 1.2)
    time = np.arange(3 * beat, dtype=np.float32) / np.float32(sample_rate_hz)
    total = np.zeros(samples + 4 * beat)
    for start in range(-2 * beat, samples, beat):
        degree = rng.choice([0, 2, 4, 5, 7, 9, 11, 12])
        for step in rng.choice([[0, 4, 7], [0, 3, 7], [0, 5, 9], [0, 4, 11]]):
            note_hz = root * 2 ** ((degree + step + rng.choice([0, 0, 12])) / 12)
            # The harmonics are powers of one decaying turn, so that one sine serves for all.
            angle, decay = np.float32(2 * np.pi * note_hz) * time, np.exp(np.float32(-rng.uniform(0.8, 2.5)) * time)
            turn = decay * np.cos(angle) + 1j * (decay * np.sin(angle))
            orders = range(1, min(8, int(0.45 * sample_rate_hz / note_hz)) + 1)
            note = np.polynomial.polynomial.polyval(
                turn, [0.0, *(order**-bright for order in orders)], tensor=False
            ).imag
            left = max(0, start)
            total[left : start + len(time)] += rng.uniform(0.4, 1.0) * note[left - start :]
    return _unit(total[:samples])


def birds(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Chirps and trills that sweep between 2 and 7 kHz, over faint hiss."""
    total = 0.05 * hiss(rng, samples, sample_rate_hz)
    place = -int(0.2 * sample_rate_hz)
    while place < samples:
        notes, length = int(rng.integers(1, 9)), int(sample_rate_hz * rng.uniform(0.03, 0.15))
        low_hz, high_hz = rng.uniform(2000, 5000), rng.uniform(2500, 7000)
        time = np.arange(length) / length
        pitch_hz = low_hz + (high_hz - low_hz) * time ** rng.uniform(0.5, 2)
        sweep = np.sin(2 * np.pi * np.cumsum(pitch_hz) / sample_rate_hz)
        note = rng.uniform(0.3, 1.5) * sweep * np.sin(np.pi * time) ** 2
        for _ in range(notes):
            if place >= 0 and place + length <= samples:
                total[place : place + length] += note
            place += int(length * rng.uniform(1.1, 1.8))
        place += int(sample_rate_hz * rng.uniform(0.02, 0.5))
    return _unit(total)


def wind(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Gusts on a microphone: rumble whose strength and brightness rise and fall together."""
    rumble = _unit(_shaped(rng, samples, sample_rate_hz, lambda f: 1 / (1 + (f / 150) ** 2)))
    whistle_hz = rng.uniform(400, 1200)
    rush = _unit(_shaped(rng, samples, sample_rate_hz, lambda f: 1 / (1 + (2 * f / whistle_hz - 2) ** 2)))
    gust = slow_curve(rng, samples, sample_rate_hz, rng.uniform(0.4, 1.5))
    return _unit(rumble * np.exp(0.8 * gust) + rng.uniform(0.1, 0.6) * rush * np.exp(1.3 * gust))


def drill(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """A power tool: a rough buzz whose pitch sags under load, with grinding noise."""
    base_hz = rng.uniform(90, 260)
    orders = np.arange(1, int(0.45 * sample_rate_hz / (1.3 * base_hz)))
    buzz = _harmonics(rng, samples, sample_rate_hz, base_hz, orders**-0.7 * rng.uniform(0.2, 1, len(orders)), 0.04)
    grind = _shaped(rng, samples, sample_rate_hz, lambda f: np.minimum(1.0, (f / 2500) ** 1.5))
    return _unit(
        buzz + rng.uniform(0.2, 0.9) * _unit(grind * np.exp(0.5 * slow_curve(rng, samples, sample_rate_hz, 6.0)))
    )


def surf(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Waves on a beach: broad noise that swells over seconds and falls back, brightest at the break."""
    dark = _unit(_shaped(rng, samples, sample_rate_hz, lambda f: 1 / (1 + (f / 400) ** 1.5)))
    bright = _unit(_shaped(rng, samples, sample_rate_hz, lambda f: np.minimum(1.0, f / 1500)))
    swell = slow_curve(rng, samples, sample_rate_hz, rng.uniform(0.25, 0.7))
    return _unit(dark * np.exp(0.5 * swell) + rng.uniform(0.2, 0.7) * bright * np.exp(1.2 * swell))


def fire(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Crackling wood: sharp cracks of very unequal strength over a low rumble."""
    cracks = _impulses(rng, samples, rng.uniform(4, 25) / sample_rate_hz, heaviness=1.4)
    ring = _resonances(cracks, sample_rate_hz, _pitches(rng, 1500, 6500, 3), rng.uniform(0.0005, 0.003, 3))
    rumble = _shaped(rng, samples, sample_rate_hz, lambda f: 1 / (1 + (f / 200) ** 1.5))
    return _unit(_unit(ring) + rng.uniform(0.2, 0.8) * _unit(rumble))


def knocks(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Single clicks, knocks and drops of things, a few a second, each with a ring between dull and sharp."""
    blows = _impulses(rng, samples, rng.uniform(0.3, 6) / sample_rate_hz, heaviness=0.7)
    return _unit(_resonances(blows, sample_rate_hz, _pitches(rng, 150, 6000, 4), np.exp(rng.uniform(-8, -4, 4))))


KINDS: dict[str, Noise] = {
    noise.__name__: noise for noise in (hiss, hum, rain, machinery, keys, music, birds, wind, drill, surf, fire)
}
"""The steady kinds of generated noise by name."""


def babble(rng: np.random.Generator, voices: list[np.ndarray], samples: int) -> np.ndarray:
    """Several people talking at once: pieces of speech, brought to about one level and added.

    Args:
      rng: source of the draws.
      voices: float [N] each, any lengths; short ones are repeated.
      samples: length of the result.

    Returns:
      float32 [samples] with RMS 1, or zeros where all voices are silent.
    """
    total = np.zeros(samples)
    for voice in voices:
        piece = take(rng, voice, samples)
        power = float(np.mean(piece**2))
        if power > 0:
            total += piece / np.sqrt(power) * 10 ** (rng.uniform(-4, 4) / 20)
    return _unit(total)


def take(rng: np.random.Generator, source: np.ndarray, samples: int) -> np.ndarray:
    """A piece of `source` from a random place; a source that is too short goes round and round: [M] -> [samples]."""
    start = int(rng.integers(len(source) - samples + 1 if len(source) >= samples else len(source)))
    if start + samples <= len(source):
        return source[start : start + samples]
    return np.take(source, np.arange(start, start + samples), mode="wrap")


def _unit(noise: np.ndarray) -> np.ndarray:
    """Scales to RMS 1; silence stays."""
    power = float(np.mean(np.square(noise, dtype=np.float64))) if len(noise) else 0.0
    return (noise / np.sqrt(power) if power > 0 else noise).astype(np.float32)


def _shaped(
    rng: np.random.Generator, samples: int, sample_rate_hz: int, gain: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Gaussian noise with the spectrum gain(frequency in Hz), which is held below 20 Hz."""
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(max(1, samples), real=True)
    frequencies = np.maximum(np.fft.rfftfreq(size, 1 / sample_rate_hz), 20.0)
    spectrum = rfft(rng.standard_normal(size, dtype=np.float32))
    return irfft(spectrum * gain(frequencies).astype(np.float32), size)[:samples]


def slow_curve(rng: np.random.Generator, samples: int, sample_rate_hz: int, rate_hz: float) -> np.ndarray:
    """A smooth random curve with mean 0 and deviation 1 that turns about `rate_hz` times a second."""
    knots = rng.standard_normal(int(samples / sample_rate_hz * 2 * rate_hz) + 4)
    place = np.arange(samples) * (2 * rate_hz / sample_rate_hz) + rng.uniform(0, 1)
    left = place.astype(np.int64)
    blend = (1 - np.cos(((place - left) * np.pi).astype(np.float32))) / 2
    return knots[left] * (1 - blend) + knots[left + 1] * blend


def _harmonics(
    rng: np.random.Generator, samples: int, sample_rate_hz: int, base_hz: float, amplitudes: np.ndarray, waver: float
) -> np.ndarray:
    """Harmonics of a base whose frequency wavers by the part `waver`, with RMS 1; those above Nyquist are left out."""
    angle = (
        2 * np.pi * np.cumsum(base_hz * (1 + waver * slow_curve(rng, samples, sample_rate_hz, 2.0))) / sample_rate_hz
    )
    turn = np.exp(1j * angle)
    power = np.ones(samples, complex)
    total = np.zeros(samples)
    for order, (amplitude, phase) in enumerate(zip(amplitudes, rng.uniform(0, 2 * np.pi, len(amplitudes)))):
        power = power * turn
        if (order + 1) * base_hz * (1 + 3 * waver) < sample_rate_hz / 2:
            total += amplitude * (power * np.exp(1j * phase)).real
    return _unit(total)


def _impulses(rng: np.random.Generator, samples: int, chance: float, heaviness: float) -> np.ndarray:
    """Impulses at random places, `chance` per sample, with log-normal strengths and random signs."""
    count = 1 + rng.poisson(chance * samples)
    train = np.zeros(samples)
    strengths = np.exp(heaviness * rng.standard_normal(count)) * rng.choice([-1, 1], count)
    np.add.at(train, rng.integers(0, samples, count), strengths)
    return train


def _pitches(rng: np.random.Generator, low_hz: float, high_hz: float, count: int) -> np.ndarray:
    """Frequencies in Hz, evenly spread over the octaves between two bounds: [count]."""
    return np.exp(rng.uniform(np.log(low_hz), np.log(high_hz), count))


def _resonances(
    excitation: np.ndarray, sample_rate_hz: int, frequencies_hz: np.ndarray, decays_seconds: np.ndarray
) -> np.ndarray:
    """The sum of damped ringings that an excitation sets off: [N] -> [N]."""
    from scipy.signal import lfilter

    total = np.zeros(len(excitation))
    for frequency, decay in zip(frequencies_hz, decays_seconds):
        radius = np.exp(-1 / (decay * sample_rate_hz))
        angle = 2 * np.pi * min(frequency, 0.48 * sample_rate_hz) / sample_rate_hz
        total += lfilter([np.sin(angle)], [1.0, -2 * radius * np.cos(angle), radius**2], excitation)
    return total
