"""A small test set for the tests of evaluation, reports and comparisons."""

from pathlib import Path

import numpy as np

from saf_jax import audio

RATE_HZ = 16000


def speech_like(seconds: float, seed: int) -> np.ndarray:
    """Voiced syllables between pauses: float [N] at 16 kHz."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(110 + 10 * seed + 30 * np.sin(2 * np.pi * 0.7 * time_s)) / RATE_HZ
    voice = sum(np.sin(k * phase) / k * (1 + np.cos(2 * np.pi * 0.3 * k * time_s + seed)) for k in range(1, 30))
    return 0.1 * voice * np.clip(np.sin(2 * np.pi * 2.1 * time_s), 0, None) + 1e-4 * rng.standard_normal(len(time_s))


def write_pairs(root: Path, count: int = 6) -> Path:
    """Writes clean, noisy and enhanced versions (noise 10 dB lower) of files s0, s1, ..., and log.txt."""
    lines = []
    for i in range(count):
        clean = speech_like(1.5, i)
        noise = np.random.default_rng(100 + i).standard_normal(len(clean)) * 0.01 * (i + 1)
        for side, samples in (("clean", clean), ("noisy", clean + noise), ("enhanced", clean + 0.3 * noise)):
            audio.write(root / side / f"s{i}.wav", audio.Audio(samples.astype(np.float32), RATE_HZ))
        lines.append(f"s{i} {'bus' if i % 2 else 'cafe'} {2.5 if i < count / 2 else 7.5}\n")
    (root / "log.txt").write_text("".join(lines))
    return root


def write_narrow_pairs(root: Path) -> Path:
    """Writes three pairs at 8 kHz, each noisier than the one before, as validation files of a small network."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        clean = speech_like(1.2, seed)[::2]
        noisy = clean + 0.01 * (seed + 1) * rng.standard_normal(len(clean))
        for side, samples in (("clean", clean), ("noisy", noisy)):
            audio.write(root / side / f"s{seed}_1.wav", audio.Audio(samples.astype(np.float32), 8000))
    return root
