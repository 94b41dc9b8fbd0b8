"""A signal with syllables and pauses, for tests that need an active level."""

import numpy as np


def speechlike(rng, samples, sample_rate_hz=16000):
    """Syllables of harmonics with pauses: something with an active level. float32 [N]."""
    time = np.arange(samples) / sample_rate_hz
    pitch = 2 * np.pi * rng.uniform(90, 220) * time
    voice = sum(np.sin(order * pitch) / order for order in range(1, 15))
    syllables = np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * time + rng.uniform(0, 6)) * 3, 0, 1)
    sentence = (np.sin(2 * np.pi * 0.3 * time + rng.uniform(0, 6)) > -0.6).astype(float)
    return (0.1 * voice * syllables * sentence + 1e-4 * rng.standard_normal(samples)).astype(np.float32)
