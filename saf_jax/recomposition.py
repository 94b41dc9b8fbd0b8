"""From a recording's own rate to the network's and back, with what the network does not see put in again.

All of it works on pieces of any lengths, in bounded memory, and gives the same samples however a recording is cut.
"""

from collections import deque
from typing import Literal, NamedTuple

import numpy as np

# Frames over which the gain of the high band is smoothed: 50 ms, short enough for a fricative.
_GAIN_WEIGHTS = np.array([1.0, 2.0, 3.0, 2.0, 1.0])
# Power of a frame below which there is nothing to judge a gain by (-100 dB of full scale): the gain is then near 1.
_NOTHING = 1e-10


Quality = Literal["VHQ", "HQ"]
"""soxr's: errors of 28 or 20 bits. The second is half as long behind."""


class Treatment(NamedTuple):
    """What becomes of a recording besides what the network makes of it.

    Attributes:
      mix: 0 leaves the recording as it is, 1 is enhanced throughout.
      max_attenuation_db: no part is attenuated by more than this; None sets no limit.
      high_band: what happens to the band above half the network's rate: "keep" attenuates it by the gain that the
        network gave the highest band it sees, "drop" leaves it out.
    """

    mix: float = 1.0
    max_attenuation_db: float | None = None
    high_band: Literal["keep", "drop"] = "keep"

    @property
    def wet(self) -> float:
        """The share of the enhanced signal in the output; the rest is the recording.

        A part that the network takes out altogether is left at 1 - wet of its amplitude: that is the limit of
        attenuation, and a mix is the same in other units.
        """
        floor = 0.0 if self.max_attenuation_db is None else 10 ** (-self.max_attenuation_db / 20)
        return self.mix * (1.0 - floor)


class Fifo:
    """Samples in the order they came: float32 [n, channels] in, any other lengths out."""

    def __init__(self, channels: int):
        self._pieces: deque[np.ndarray] = deque()
        self.channels = channels
        self.length = 0

    def put(self, samples: np.ndarray) -> None:
        if len(samples):
            self._pieces.append(samples)
            self.length += len(samples)

    def take(self, count: int) -> np.ndarray:
        """The next `count` samples, at most what is there."""
        taken = []
        count = min(count, self.length)
        self.length -= count
        while count:
            piece = self._pieces.popleft()
            if len(piece) > count:
                self._pieces.appendleft(piece[count:])
                piece = piece[:count]
            taken.append(piece)
            count -= len(piece)
        return np.concatenate(taken) if taken else np.zeros((0, self.channels), np.float32)


class Resampler:
    """`audio.resample` for pieces: the same samples, [n, channels] in and out; nothing to do where the rates agree."""

    def __init__(self, from_hz: int, to_hz: int, channels: int, quality: Quality = "VHQ"):
        self._stream = None
        if from_hz != to_hz:
            import soxr

            self._stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality=quality)

    def push(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        if self._stream is None:
            return samples
        # soxr needs the rows of a piece beside each other in memory.
        return self._stream.resample_chunk(np.ascontiguousarray(samples, np.float32), last=last)


class HighBandGain:
    """The gain of the band above the network's, from what the network did in the upper half of its own band.

    For each frame of 10 ms the ratio of the powers after and before, both smoothed over 50 ms, at most 1; linear
    between the frames' middles. Noise has it small, fricatives of the speech near 1.

    Args:
      sample_rate_hz: the network's rate.
      channels: number of channels.
    """

    def __init__(self, sample_rate_hz: int, channels: int):
        self._rate = sample_rate_hz
        self._hop = max(4, round(sample_rate_hz / 100))
        self._window = np.hanning(self._hop + 2)[1:-1, None].astype(np.float32)
        self._rest = Fifo(2 * channels)
        side = len(_GAIN_WEIGHTS) // 2
        # Powers [frames, before and after, channels] that are still needed; the recording starts after `side` of them.
        self._powers = np.zeros((side, 2, channels))
        # Gains [frames, channels] that are still needed, and the number of the first of them.
        self._gains = np.ones((0, channels), np.float32)
        self._first = 0

    def push(self, before: np.ndarray, after: np.ndarray, last: bool = False) -> None:
        """Takes the network's input and output, [n, channels] each; `last` ends the recording."""
        self._rest.put(np.concatenate([before, after], axis=1))
        count = self._rest.length // self._hop
        frames = self._rest.take(count * self._hop).reshape(count, self._hop, self._rest.channels)
        spectrum = np.fft.rfft(frames * self._window, axis=1)[:, self._hop // 4 :]
        powers = np.mean(spectrum.real**2 + spectrum.imag**2, axis=1) / self._hop
        powers = np.concatenate([self._powers, powers.reshape(count, 2, self._rest.channels // 2)])
        side = len(_GAIN_WEIGHTS) // 2
        if last:
            powers = np.concatenate([powers, np.zeros((side, *powers.shape[1:]))])
        known = max(0, len(powers) - 2 * side)
        self._powers = powers[known:]
        if known:
            smooth = sum(weight * powers[i : i + known] for i, weight in enumerate(_GAIN_WEIGHTS))
            gains = np.sqrt(np.minimum((smooth[:, 1] + _NOTHING) / (smooth[:, 0] + _NOTHING), 1.0))
            self._gains = np.concatenate([self._gains, gains.astype(np.float32)])

    def known_until(self) -> float:
        """Seconds from the start up to which the gain is known."""
        return max(0.0, (self._first + len(self._gains) - 0.5) * self._hop / self._rate)

    def at(self, first: int, count: int, sample_rate_hz: int) -> np.ndarray:
        """Gains of `count` samples from number `first` on at another rate: [count, channels]; frames before are let go.

        Beyond the last known frame the gain stays as it was there.
        """
        if not len(self._gains):
            return np.ones((count, self._gains.shape[1]), np.float32)
        times = (first + np.arange(count)) / sample_rate_hz * self._rate / self._hop - 0.5
        middles = self._first + np.arange(len(self._gains))
        gains = np.stack([np.interp(times, middles, column) for column in self._gains.T], axis=1)
        passed = min(max(0, int(times[-1]) - self._first), len(self._gains) - 1) if count else 0
        self._gains, self._first = self._gains[passed:], self._first + passed
        return gains.astype(np.float32)


class Recomposer:
    """Gives the network its input and makes the output from what comes back.

    `take` every piece of the recording and give its result to the network; `give` what the network returns; `end`.
    With x the recording, down and up the resampling, y the network's output and g the gain of the high band:

        output = wet * (up(y) + g * (x - up(down(x)))) + (1 - wet) * x

    so that a network that changes nothing gives back the recording itself.

    Args:
      sample_rate_hz: of the recording.
      network_rate_hz: of the network.
      channels: number of channels.
      treatment: mix and high band.
      quality: of the resampling.
    """

    def __init__(
        self,
        sample_rate_hz: int,
        network_rate_hz: int,
        channels: int,
        treatment: Treatment,
        quality: Quality = "VHQ",
    ):
        self._rate, self._wet, self._channels = sample_rate_hz, np.float32(treatment.wet), channels
        self._down = Resampler(sample_rate_hz, network_rate_hz, channels, quality)
        self._keeps = treatment.high_band == "keep" and sample_rate_hz > network_rate_hz
        self._up = Resampler(network_rate_hz, sample_rate_hz, channels * (2 if self._keeps else 1), quality)
        self._gain = HighBandGain(network_rate_hz, channels)
        self._recording, self._inputs = Fifo(channels), Fifo(channels)
        self._returned = Fifo(channels * (2 if self._keeps else 1))
        self._done = 0
        self._network_rate = network_rate_hz

    def notes(self) -> list[str]:
        """What a person should know of what happens to the rate, if anything does."""
        if self._rate == self._network_rate:
            return []
        above = ""
        if self._rate > self._network_rate:
            above = f", above {self._network_rate // 2} Hz {'kept with the gain below' if self._keeps else 'dropped'}"
        return [f"{self._rate} Hz resampled to {self._network_rate} Hz and back{above}"]

    def take(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """A piece of the recording [n, channels] -> the network's next input [channels, m]."""
        self._recording.put(samples)
        inner = self._down.push(samples, last)
        if self._keeps:
            self._inputs.put(inner)
        return inner.T

    def give(self, enhanced: np.ndarray, last: bool = False) -> np.ndarray:
        """The network's next output [channels, m] -> the next piece of the output [k, channels]."""
        enhanced = enhanced.T
        if self._keeps:
            before = self._inputs.take(len(enhanced))
            self._gain.push(before, enhanced, last)
            enhanced = np.concatenate([enhanced, before], axis=1)
        self._returned.put(self._up.push(enhanced, last))
        count = min(self._returned.length, self._recording.length)
        if self._keeps and not last:
            count = min(count, max(0, int(self._gain.known_until() * self._rate) - self._done))
        return self._mix(count)

    def end(self) -> np.ndarray:
        """What is left [k, channels], when all input was taken and all output given."""
        piece = self.give(np.zeros((self._channels, 0), np.float32), last=True)
        # Resampling there and back rounds the length twice: the last sample or two are missing or too many.
        missing = self._recording.length
        if not missing:
            return piece
        self._returned.put(np.zeros((missing, self._returned.channels), np.float32))
        return np.concatenate([piece, self._mix(missing)])

    def _mix(self, count: int) -> np.ndarray:
        recording, returned = self._recording.take(count), self._returned.take(count)
        if self._keeps:
            enhanced, low = returned[:, : self._channels], returned[:, self._channels :]
            enhanced = enhanced + self._gain.at(self._done, count, self._rate) * (recording - low)
        else:
            enhanced = returned
        self._done += count
        return self._wet * enhanced + (1 - self._wet) * recording
