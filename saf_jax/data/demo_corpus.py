"""A small training set that needs no download: synthetic voices in generated noise.

It is honest in that the test part has voices and kinds of noise that the training part lacks. It is still synthetic:
good for a demonstration and for tests, not for figures that compare networks.
"""

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saf_jax.data import noises
from saf_jax.data.active_level import active_level_db
from saf_jax.data.espeak import SAMPLE_RATE_HZ as SPOKEN_RATE_HZ
from saf_jax.data.espeak import Utterance, synthesize
from saf_jax.data.folders import holds_only, whole_folder
from saf_jax.data.manifest import FILE_NAME, read_manifest, write_manifest
from saf_jax.data.mixing import gain_for_snr
from saf_jax.data.sentences import compose
from saf_jax.errors import UserError
from saf_jax.worker_processes import usable_cores

SAMPLE_RATE_HZ = 16000
TRAIN_NOISES = ("hiss", "hum", "rain", "machinery", "keys", "music", "birds", "babble")
TEST_NOISES = ("wind", "drill", "surf", "fire")
_MARKER = "corpus.json"
_VERSION = 1

# Language and variant of eSpeak NG, and base pitch. The text is English throughout: the other languages speak it with a
# heavy accent. Variants with breath noise (f2, f3, f5, whisper and others) differ from run to run and are left out.
_TRAIN_VOICES = """
    en-us+f1:48 en-us+m1:50 en+Andrea:46 en-us+m3:44 en-gb-scotland+Annie:52 en-us+Alex:50 en-gb-x-rp+belinda:50
    en-029+m7:42 en-us-nyc+adam:55 en-gb-x-gbclan+Diogo:48 en-us+anika:50 en+klatt2:40 en-us+linda:54 en-us+Hugo:46
    en-gb-x-gbcwmd+m5:52 en-us+steph:50 en-us+Michael:44 en+caleb:58 en-us+zac:50 en-us+pablo:38 en-us-nyc+grandma:50
    en-gb-scotland+ed:56 en-us+Nguyen:50 de+Gene:48 it+aunty:44 sv+rob:52 nl+klatt4:50 fr+norbert:46
"""
_VALID_VOICES = "en-us+f4:50 en-gb-x-rp+m2:47 en+max:52 es+shelby:48"
_TEST_VOICES = """
    en+m4:50 en-us+Mario:55 en-gb-x-rp+Lee:50 en-us-nyc+benjamin:50 en-gb-scotland+travis:46 en-us+marcelo:53
    en-029+Jacky:44 pl+antonio:60
"""
_SIZES = {"train": 560, "valid": 20, "test": 32}
_TEST_SNRS_DB = (0.0, 5.0, 10.0, 15.0)


class DemoCorpus(NamedTuple):
    """Where the parts of a demo corpus lie."""

    folder: Path
    train_clean: Path
    train_noisy: Path
    valid_clean: Path
    valid_noisy: Path
    test_clean: Path
    test_noisy: Path
    manifest: Path


def make_demo_corpus(folder: str | os.PathLike, seed: int = 0) -> DemoCorpus:
    """Makes the corpus, or finds that it is there already.

    The corpus: 560 training pairs (28 voices, 8 kinds of noise, SNR -5 to 15 dB), 20 validation pairs (4 other voices,
    the kinds of training), 32 test pairs (8 further voices, 4 further kinds, 0, 5, 10 and 15 dB): 16 kHz, 16-bit wav,
    2 to 6 s each, 128 MB. SNR is P.56 active level of the speech minus RMS level of the noise. The same seed gives the
    same bytes. The folder appears when everything is written; one that is not complete is made anew.

    Args:
      folder: where it goes; must not exist, be empty, or be a demo corpus.
      seed: of voices' sentences, noises and mixing.

    Raises:
      UserError: espeakng-loader is missing, the folder holds something else, or it cannot be written.
    """
    folder = Path(folder)
    corpus = DemoCorpus(
        folder,
        *(folder / split / kind for split in _SIZES for kind in ("clean", "noisy")),
        manifest=folder / FILE_NAME,
    )
    marker = {"format": "saf-jax demo corpus", "version": _VERSION, "seed": seed, "files": _SIZES}
    if _is_complete(folder, marker):
        return corpus
    with whole_folder(folder, _is_ours) as partial:
        _make(partial, seed)
        (partial / _MARKER).write_text(json.dumps(marker) + "\n")
    return corpus


def _is_complete(folder: Path, marker: dict) -> bool:
    try:
        if json.loads((folder / _MARKER).read_text()) != marker:
            return False
        counts = {len(list((folder / split / kind).glob("*.wav"))) for split in _SIZES for kind in ("clean", "noisy")}
        return counts == set(_SIZES.values()) and (folder / FILE_NAME).is_file()
    except (OSError, ValueError):
        return False


def _is_ours(folder: Path) -> bool:
    """True for a folder that holds nothing but parts of a demo corpus."""
    if not (folder / _MARKER).is_file():
        return False
    names = [_MARKER, FILE_NAME]
    with contextlib.suppress(UserError):
        for row in read_manifest(folder / FILE_NAME, ("file", "split")):
            names += [f"{row['split']}/{kind}/{Path(row['file']).name}" for kind in ("clean", "noisy")]
    return holds_only(folder, names)


class _Example(NamedTuple):
    split: str
    voice: str
    noise: str
    snr_db: float
    text: str


def _plan(seed: int) -> tuple[list[_Example], list[Utterance]]:
    """Decides what is said by whom in which noise; voice by voice, since changing voices is what eSpeak is slow at."""
    examples, utterances = [], []
    for part, (split, size) in enumerate(_SIZES.items()):
        rng = np.random.default_rng([seed, part])
        voices = {"train": _TRAIN_VOICES, "valid": _VALID_VOICES, "test": _TEST_VOICES}[split].split()
        kinds = TEST_NOISES if split == "test" else TRAIN_NOISES
        for index in range(size):
            number = index * len(voices) // size
            name, _, pitch = voices[number].partition(":")
            if split == "test":
                # Every kind meets every SNR, and every voice meets every kind.
                kind, snr_db = kinds[index % 4], _TEST_SNRS_DB[(index + index // 4) % 4]
            else:
                kind, snr_db = kinds[(index + number) % len(kinds)], round(float(rng.uniform(-5, 15)), 1)
            text = compose(rng)
            base = int(np.clip(int(pitch) + rng.integers(-6, 7), 0, 99))
            utterances.append(Utterance(name, int(rng.integers(135, 185)), base, int(rng.integers(35, 75)), text))
            examples.append(_Example(split, name, kind, snr_db, text))
    return examples, utterances


def _make(folder: Path, seed: int) -> None:
    import soundfile
    import soxr

    examples, utterances = _plan(seed)
    spoken = synthesize(utterances)
    train = [samples for samples, example in zip(spoken, examples) if example.split == "train"]

    def make(index: int) -> tuple:
        example = examples[index]
        rng = np.random.default_rng([seed, 100, index])
        speech = soxr.resample(spoken[index].astype(np.float32) / 32768, SPOKEN_RATE_HZ, SAMPLE_RATE_HZ, quality="VHQ")
        before, after = rng.integers(SAMPLE_RATE_HZ // 10, SAMPLE_RATE_HZ // 2, 2)
        clean = np.pad(speech, (before, after))
        if example.noise == "babble":
            others = rng.choice(len(train), size=int(rng.integers(4, 8)), replace=False)
            voices = [soxr.resample(train[i].astype(np.float32), SPOKEN_RATE_HZ, SAMPLE_RATE_HZ) for i in others]
            noise = noises.babble(rng, voices, len(clean))
        else:
            noise = noises.KINDS[example.noise](rng, len(clean), SAMPLE_RATE_HZ)
        level_db = active_level_db(clean, SAMPLE_RATE_HZ)
        clean = clean * 10 ** ((rng.uniform(-32, -20) - level_db) / 20)
        noise = noise * gain_for_snr(clean, noise, example.snr_db, SAMPLE_RATE_HZ)
        gain = min(1.0, 0.98 / max(np.abs(clean).max(), np.abs(clean + noise).max()))
        voice = example.voice.replace("+", "-")
        name = f"{voice}_{example.noise}_{index:03d}.wav"
        for kind, samples in (("clean", clean), ("noisy", clean + noise)):
            soundfile.write(folder / example.split / kind / name, gain * samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        seconds = f"{len(clean) / SAMPLE_RATE_HZ:.3f}"
        return (
            f"{example.split}/noisy/{name}",
            example.split,
            voice,
            example.noise,
            example.snr_db,
            seconds,
            example.text,
        )

    for split in _SIZES:
        for kind in ("clean", "noisy"):
            (folder / split / kind).mkdir(parents=True)
    try:
        with ThreadPoolExecutor(min(4, usable_cores())) as pool:
            rows = list(pool.map(make, range(len(examples))))
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).rstrip(". ")
        raise UserError(f"{folder}: cannot be written ({reason}): check the free space") from error
    write_manifest(folder / FILE_NAME, ("file", "split", "speaker", "noise", "snr_db", "seconds", "text"), rows)
