"""Synthetic speech by eSpeak NG, through the package `espeakng-loader`, which brings its library and data.

eSpeak NG keeps its state in global C variables, and a voice sounds slightly different after another one. So every call
of `synthesize` runs in a process of its own and speaks in the given order: the same list gives the same samples, and a
crash of the library is not ours.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from saf_jax.errors import UserError

SAMPLE_RATE_HZ = 22050
"""The rate at which eSpeak NG speaks."""


class Utterance(NamedTuple):
    """What to say, and how.

    Attributes:
      voice: language and variant of eSpeak NG, such as "en-us+f3".
      words_per_minute: speed, 80 to 450.
      pitch: base pitch, 0 to 99; 50 is the voice's own.
      pitch_range: liveliness of the melody, 0 to 99; 50 is the voice's own.
      text: the sentence.
    """

    voice: str
    words_per_minute: int
    pitch: int
    pitch_range: int
    text: str


def synthesize(utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """Speaks the utterances one after the other.

    Returns:
      One int16 [N] for each, at `SAMPLE_RATE_HZ`.

    Raises:
      UserError: espeakng-loader is not installed, or its library fails.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UserError(
            "synthetic speech needs the package espeakng-loader, which is not installed: pip install 'saf-jax[demo]'"
        )
    with tempfile.TemporaryDirectory(prefix="saf-jax-speech-") as folder:
        result = os.path.join(folder, "samples")
        # -P: the folder of this file stays out of the module path; the child imports what this process can import.
        done = subprocess.run(
            [sys.executable, "-P", __file__, result],
            input=json.dumps(utterances).encode(),
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if done.returncode:
            reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"eSpeak NG failed (status {done.returncode}: {reason}): reinstall it: pip install 'saf-jax[demo]'"
            )
        lengths, samples = np.fromfile(result + ".lengths", np.int64), np.fromfile(result, np.int16)
    return np.split(samples, np.cumsum(lengths)[:-1])


@contextlib.contextmanager
def _data_folder() -> Iterator[str]:
    """eSpeak's data under a path that fits into its buffer of 160 characters."""
    import espeakng_loader

    folder = str(espeakng_loader.get_data_path())
    if len(folder.encode()) < 120:
        yield folder
        return
    with tempfile.TemporaryDirectory() as short:
        link = os.path.join(short, "espeak-ng-data")
        os.symlink(folder, link)
        yield link


def _speak_all(result: str) -> None:
    """The child: reads utterances from stdin, writes samples to `result` and lengths beside it."""
    import ctypes

    import espeakng_loader

    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    c_library = ctypes.CDLL(None)
    chunks: list[np.ndarray] = []

    def collect(samples, count, _events):
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(collect)
    synchronous, utf8, by_character = 2, 1, 1
    speed, volume, pitch, pitch_range = 1, 2, 3, 4
    lengths = []
    with _data_folder() as folder, open(result, "wb") as output:
        rate = library.espeak_Initialize(synchronous, 200, folder.encode(), 0)
        if rate != SAMPLE_RATE_HZ:
            sys.exit(f"the library cannot read its data in {folder}")
        library.espeak_SetSynthCallback(callback)
        for number, (voice, words_per_minute, base, liveliness, text) in enumerate(json.load(sys.stdin)):
            if library.espeak_SetVoiceByName(voice.encode()):
                sys.exit(f"no voice {voice}")
            # At its own volume of 100 some voices run into the limits of 16 bits.
            for key, value in ((speed, words_per_minute), (volume, 45), (pitch, base), (pitch_range, liveliness)):
                library.espeak_SetParameter(key, value, 0)
            # Breath and flutter come from the C library's random numbers.
            c_library.srand(number + 1)
            chunks.clear()
            said = text.encode()
            if library.espeak_Synth(said, len(said) + 1, 0, by_character, 0, utf8, None, None):
                sys.exit(f"cannot say {text!r}")
            library.espeak_Synchronize()
            samples = np.concatenate([np.empty(0, np.int16), *chunks])
            output.write(samples.tobytes())
            lengths.append(len(samples))
    np.array(lengths, np.int64).tofile(result + ".lengths")


if __name__ == "__main__":
    _speak_all(sys.argv[1])
