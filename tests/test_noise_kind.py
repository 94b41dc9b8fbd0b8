"""Kinds of noise, on generated noise and on recordings with labels."""

import csv
from collections import Counter

import numpy as np

from saf_jax.audio import read_mono
from saf_jax.noise_kind import noise_kind

RATE_HZ = 16000


def test_generated_noises():
    rng = np.random.default_rng(0)
    steady = rng.standard_normal(3 * RATE_HZ)
    swelling = steady * (1 + 20 * np.sin(np.pi * np.arange(len(steady)) / len(steady)) ** 8)
    clicks = 0.01 * steady
    clicks[::12000] += 5.0
    assert [noise_kind(x, RATE_HZ) for x in (steady, swelling, clicks)] == ["stationary", "non-stationary", "impulsive"]
    assert noise_kind(0 * steady, RATE_HZ) is None and noise_kind(steady[: RATE_HZ // 2], RATE_HZ) is None
    # Neither the level nor the rate matters.
    assert noise_kind(1e-4 * clicks, RATE_HZ) == "impulsive" and noise_kind(steady, 48000) == "stationary"


def test_recordings_with_known_labels(audio_root):
    root = audio_root / "train"
    expected = {
        "Rain": "stationary", "Helicopter": "stationary", "Rooster": "non-stationary", "Baby cry": "non-stationary",
        "Clock tick": "impulsive", "Person sneeze": "impulsive", "Dog bark": "impulsive",
    }  # fmt: skip
    with (root / "noise.tsv").open() as table:
        rows = [row for row in csv.DictReader(table, delimiter="\t") if row["speaker_or_label"] in expected]
    found = Counter()
    for row in rows:
        kind = noise_kind(read_mono(root / "noise" / row["file"], RATE_HZ)[: 3 * RATE_HZ], RATE_HZ)
        found[row["speaker_or_label"], kind == expected[row["speaker_or_label"]]] += 1
    for label in expected:
        assert found[label, True] >= 2 * found[label, False] > -1 and found[label, True] > 5, label
