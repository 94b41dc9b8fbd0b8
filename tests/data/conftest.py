"""Small corpora for the tests of the data code."""

import numpy as np
import pytest
import soundfile
from speechlike import speechlike

from saf_jax.config import load_config


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory):
    """13 pairs of 0.2 to 3.1 s at 16 kHz: noisy is half of clean, so that a shift between them shows."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for kind in ("clean", "noisy"):
        (folder / kind).mkdir()
    for number in range(13):
        clean = np.round(speechlike(rng, int(16000 * (0.2 + 0.24 * number))) * 16384) * 2 / 32768
        for kind, samples in (("clean", clean), ("noisy", clean / 2)):
            soundfile.write(folder / kind / f"a{number:02d}.wav", samples, 16000, subtype="PCM_16")
    return folder


@pytest.fixture(scope="session")
def pools(tmp_path_factory):
    """Folders clean, noise and rir for mixing."""
    folder = tmp_path_factory.mktemp("pools")
    rng = np.random.default_rng(1)
    for kind in ("clean", "noise", "rir"):
        (folder / kind).mkdir()
    for number in range(9):
        soundfile.write(folder / "clean" / f"s{number}.wav", speechlike(rng, 16000 + 6000 * number), 16000)
    for number in range(4):
        noise = np.cumsum(rng.standard_normal(12000 + 20000 * number)) if number % 2 else rng.standard_normal(40000)
        noise = noise - noise.mean()
        soundfile.write(folder / "noise" / f"n{number}.wav", 0.2 * noise / np.abs(noise).max(), 16000)
    for number in range(3):
        room = rng.standard_normal(5000) * np.exp(-np.arange(5000) / (400 + 400 * number)) * 0.2
        room[:100] = 0
        room[100] = 1.0
        soundfile.write(folder / "rir" / f"r{number}.wav", 0.5 * room, 16000)
    return folder


@pytest.fixture
def pair_config(pair_folders):
    """A config that trains and validates on `pair_folders`, with overrides."""

    def make(*overrides):
        names = {"train_clean": "clean", "train_noisy": "noisy", "valid_clean": "clean", "valid_noisy": "noisy"}
        folders = [f"data.{key}={pair_folders / name}" for key, name in names.items()]
        return load_config("paper", [*folders, "data.crop_seconds=1.0", "train.batch_size=4", *overrides])

    return make


@pytest.fixture
def mix_config(pools):
    """A config that mixes on the fly from `pools`, with overrides."""

    def make(*overrides):
        folders = [f"data.train_{kind}={pools / kind}" for kind in ("clean", "noise", "rir")]
        return load_config("paper", [*folders, "data.crop_seconds=1.5", "train.batch_size=4", *overrides])

    return make
