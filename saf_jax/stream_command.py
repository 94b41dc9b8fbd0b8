"""`saf-jax enhance - --stream`: samples on stdin, enhanced samples on stdout, while they come."""

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from saf_jax.audio_blocks import AudioFormat
from saf_jax.config import Config
from saf_jax.enhance_command import treatment_of
from saf_jax.enhance_pipes import check_stdout, raw_format, stdin_bytes
from saf_jax.errors import UserError
from saf_jax.level import LOUDEST
from saf_jax.recomposition import Recomposer, Treatment

# Sizes in headers from programs that do not know how much will come.
_UNKNOWN = 0xFFFF_FFFF
# What a header may hold before its samples.
_LONGEST_HEADER = 1 << 20
_WAV_SUBTYPES = {
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
}
# Bytes of a sample and its full scale; None for floats.
_SIZES = {
    "PCM_U8": (1, 1 << 7),
    "PCM_S8": (1, 1 << 7),
    "PCM_16": (2, 1 << 15),
    "PCM_24": (3, 1 << 23),
    "PCM_32": (4, 1 << 31),
    "FLOAT": (4, None),
    "DOUBLE": (8, None),
}


class WavStart(NamedTuple):
    """What comes before the samples of a wav stream.

    Attributes:
      format: how the samples are stored.
      fmt: the chunk that says so.
      size: bytes of samples that the header promises; None if it did not know.
    """

    format: AudioFormat
    fmt: bytes
    size: int | None


def run_stream(args: argparse.Namespace) -> int:
    """Enhances stdin hop by hop until it ends; the output is as long as the input.

    Raises:
      UserError: options that do not go with it, no audio on stdin, or a network that looks ahead.
      BrokenPipeError: the reader of stdout went away.
    """
    if args.inputs != ["-"] or args.out not in (None, "-") or args.in_place:
        raise UserError("--stream: works from stdin to stdout: saf-jax enhance - --stream")
    if args.overwrite:
        raise UserError("--stream: writes no file: leave --overwrite out")
    treatment, form = treatment_of(args), raw_format(args.raw_rate, args.raw_format, args.raw_channels)
    check_stdout()
    given = stdin_bytes()

    from saf_jax.enhancement import Enhancer
    from saf_jax.jit_cache import use_compilation_cache
    from saf_jax.pretrained import DEFAULT_CAUSAL, load_weights
    from saf_jax.streaming import causal_hint

    use_compilation_cache()
    config, variables = load_weights(DEFAULT_CAUSAL if args.weights is None else args.weights)
    if not config.model.causal:
        raise UserError(f"--stream: this network looks ahead: {causal_hint(config.model)}")
    enhancer, hop = Enhancer(config, variables), config.stft.hop_samples
    size = None
    if form is None:
        start = read_wav_start(given)
        form, size = start.format, start.size
        sys.stdout.buffer.write(wav_start(start))
        sys.stdout.buffer.flush()
    # Compiled before the first sample is taken: what waits meanwhile waits in the pipe.
    for _ in enhancer.blocks([np.zeros((form.channels, hop), np.float32)], block_samples=hop):
        pass
    recomposer = _recomposer(form.sample_rate_hz, form.channels, config, treatment)
    notes = [f"{latency_ms(form.sample_rate_hz, config, treatment):.0f} ms behind", *recomposer.notes()]
    print(f"stdin: {form.sample_rate_hz} Hz, {form.channels} channels ({'; '.join(notes)})", file=sys.stderr)

    replaced, clipped = 0, 0
    with _Interrupts() as interrupts:
        came = Arrival(given, form, size, interrupts)

        def network_input() -> Iterator[np.ndarray]:
            nonlocal replaced
            for samples in came:
                usable, bad = mend(samples)
                replaced += bad
                yield recomposer.take(usable)
            yield recomposer.take(np.zeros((0, form.channels), np.float32), last=True)

        for enhanced in enhancer.blocks(network_input(), block_samples=hop):
            clipped += write_samples(sys.stdout.buffer, recomposer.give(enhanced), form)
        clipped += write_samples(sys.stdout.buffer, recomposer.end(), form)
    if came.missing:
        print(f"stdin: ended {came.missing} bytes before the end that its header promises", file=sys.stderr)
    if came.odd:
        print(f"stdin: ended in the middle of a sample, which is left out ({came.odd} bytes)", file=sys.stderr)
    if replaced:
        print(f"stdin: {replaced} samples NaN, infinite or beyond all scales, replaced by 0", file=sys.stderr)
    if clipped:
        print(f"stdout: {clipped} samples clipped at full scale", file=sys.stderr)
    return 1 if came.missing or came.odd else 0


def _recomposer(sample_rate_hz: int, channels: int, config: Config, treatment: Treatment) -> Recomposer:
    return Recomposer(sample_rate_hz, config.stft.sample_rate_hz, channels, treatment, quality="HQ")


def latency_ms(sample_rate_hz: int, config: Config, treatment: Treatment) -> float:
    """How long after a sample its enhanced version comes at the latest, when samples come hop by hop.

    The network's is the window; resampling there and back and the gain of the high band add theirs, which is found by
    sending some seconds of silence through them.

    Args:
      sample_rate_hz: of what comes.
      config: settings of a causal network.
      treatment: what becomes of it besides.
    """
    from saf_jax.streaming import delay_samples

    network_rate, hop = config.stft.sample_rate_hz, config.stft.hop_samples
    recomposer = _recomposer(sample_rate_hz, 1, config, treatment)
    # What the network holds back, and what is not a whole hop yet.
    waiting, taken, given, furthest = -delay_samples(config), 0, 0, 0
    piece = -(-sample_rate_hz * hop // network_rate)
    for _ in range(500):
        taken += piece
        waiting += recomposer.take(np.zeros((piece, 1), np.float32)).shape[1]
        ready = max(0, waiting) // hop * hop
        waiting -= ready
        # Until the next piece comes nothing more goes out.
        furthest = max(furthest, taken - given)
        given += len(recomposer.give(np.zeros((1, ready), np.float32)))
    return 1000 * furthest / sample_rate_hz


class _Interrupts:
    """The first Ctrl-C ends the input, as where a microphone is switched off; a second one ends the command."""

    def __init__(self) -> None:
        self.asked, self._reading = False, False

    def __enter__(self) -> "_Interrupts":
        self._before = None
        main = threading.current_thread() is threading.main_thread()
        # Not where somebody ignores it, as for a background job of a script.
        if main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: object) -> None:
        again, self.asked = self.asked, True
        if again or self._reading:
            raise KeyboardInterrupt

    def read(self, stream: BinaryIO, most: int) -> bytes:
        """What is there, at least a byte; nothing at the end of the input."""
        if self.asked:
            return b""
        self._reading = True
        try:
            return stream.read1(most)
        except KeyboardInterrupt:
            return b""
        finally:
            self._reading = False


class Arrival:
    """What comes on a stream, as it comes: float32 [n, channels] each; a last part of a sample is left out.

    Args:
      stream: where it comes.
      form: how the samples are stored.
      size: bytes of samples that the header promises; None if it did not know.
      interrupts: whether somebody wants it to end.

    Attributes:
      missing: bytes that the header promised and that did not come, when it has ended by itself.
      odd: bytes of a sample that was cut off.
    """

    def __init__(self, stream: BinaryIO, form: AudioFormat, size: int | None, interrupts: _Interrupts):
        self._stream, self._form, self._left, self._interrupts = stream, form, size, interrupts
        self.missing, self.odd = 0, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        frame, rest = _SIZES[self._form.subtype][0] * self._form.channels, b""
        while self._left is None or self._left > 0:
            came = self._interrupts.read(self._stream, min(self._left or 1 << 16, 1 << 16))
            if not came:
                break
            if self._left is not None:
                self._left -= len(came)
            rest += came
            whole = len(rest) // frame * frame
            yield decode(rest[:whole], self._form.subtype).reshape(-1, self._form.channels)
            rest = rest[whole:]
        if not self._interrupts.asked:
            self.missing, self.odd = self._left or 0, len(rest)


def read_wav_start(stream: BinaryIO) -> WavStart:
    """Reads up to the first sample of a wav file that comes through a pipe.

    Raises:
      UserError: it is no wav stream, or of a sample format that it should not have.
    """
    head = stream.read(12)
    if not head:
        raise UserError("stdin: nothing came: check the command before the pipe")
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        raise UserError("stdin: is no wav stream: for samples without a header use --raw-rate HZ")
    fmt, passed = b"", 0
    while len(chunk := stream.read(8)) == 8 and passed < _LONGEST_HEADER:
        size = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            # Neither 0 nor nearly all that 32 bits can count is meant as a length.
            return WavStart(_wav_format(fmt), fmt, size if 0 < size < 0x7FFF_0000 else None)
        body = stream.read(min(size + size % 2, _LONGEST_HEADER))
        passed += len(body)
        if chunk[:4] == b"fmt ":
            fmt = body
    raise UserError("stdin: the wav stream holds no samples: check the command before the pipe")


def _wav_format(fmt: bytes) -> AudioFormat:
    if len(fmt) < 16:
        raise UserError("stdin: the wav stream does not say what its samples are: check the command before the pipe")
    tag, channels, rate = (int.from_bytes(fmt[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8)))
    bits = int.from_bytes(fmt[14:16], "little")
    if tag == 0xFFFE and len(fmt) >= 26:
        tag = int.from_bytes(fmt[24:26], "little")
    if (tag, bits) not in _WAV_SUBTYPES or not channels or not rate:
        raise UserError(
            f"stdin: a wav stream of format {tag} with {bits} bits: send PCM of 8 to 32 bits or floating point"
        )
    return AudioFormat(rate, channels, "WAV", _WAV_SUBTYPES[tag, bits], "LITTLE")


def wav_start(start: WavStart) -> bytes:
    """The header of the output: the same format, and the same length as far as the input's header knows it."""

    def chunk(name: bytes, size: int) -> bytes:
        return name + size.to_bytes(4, "little")

    size = _UNKNOWN if start.size is None else start.size
    whole = _UNKNOWN if start.size is None else 4 + 8 + len(start.fmt) + 8 + size + size % 2
    return chunk(b"RIFF", whole) + b"WAVE" + chunk(b"fmt ", len(start.fmt)) + start.fmt + chunk(b"data", size)


def mend(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """The same samples with 0 for those that are no numbers or absurdly large, and how many these are.

    The running level never forgets a power that is not finite: one such sample would silence all that follow.
    """
    # False for NaN as well.
    good = np.abs(samples) <= LOUDEST
    bad = good.size - int(np.count_nonzero(good))
    return (np.where(good, samples, np.float32(0)) if bad else samples), bad


def write_samples(stream: BinaryIO, samples: np.ndarray, form: AudioFormat) -> int:
    """Sends samples float32 [n, channels] on at once; returns how many an integer format had to clip."""
    data, clipped = encode(samples.reshape(-1), form.subtype)
    stream.write(data)
    stream.flush()
    return clipped


def decode(data: bytes, subtype: str) -> np.ndarray:
    """Little-endian samples of a subtype that soundfile names -> float32 [n], full scale 1."""
    width, full = _SIZES[subtype]
    if full is None:
        # What float32 cannot hold becomes infinite.
        with np.errstate(over="ignore"):
            return np.frombuffer(data, f"<f{width}").astype(np.float32)
    if subtype == "PCM_U8":
        return (np.frombuffer(data, np.uint8).astype(np.float32) - full) / full
    if width == 3:
        # Three bytes as the upper ones of four.
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / (full << 8)).astype(np.float32)
    return (np.frombuffer(data, f"<i{width}") / full).astype(np.float32)


def encode(samples: np.ndarray, subtype: str) -> tuple[bytes, int]:
    """Inverse of `decode`, and the number of samples beyond full scale, which integers cannot hold."""
    width, full = _SIZES[subtype]
    if full is None:
        return samples.astype(f"<f{width}").tobytes(), 0
    whole = np.rint(samples.astype(np.float64) * full)
    inside = whole.clip(-full, full - 1)
    clipped = int(np.count_nonzero(np.abs(samples) > 1))
    if subtype == "PCM_U8":
        return (inside + full).astype(np.uint8).tobytes(), clipped
    if width == 3:
        return inside.astype("<i4")[:, None].view(np.uint8)[:, :3].tobytes(), clipped
    return inside.astype(f"<i{width}").tobytes(), clipped
