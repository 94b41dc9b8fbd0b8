"""Spectrogram pictures (matplotlib)."""

import os
from collections.abc import Mapping

import numpy as np

from saf_jax.errors import UserError
from saf_jax.files import atomic_path


def save_spectrograms(path: str | os.PathLike, signals: Mapping[str, np.ndarray], sample_rate_hz: int) -> None:
    """Draws the spectrograms of several signals one below the other, on one scale, and saves the picture.

    Args:
      path: a .png, .svg or .pdf file.
      signals: float [N] by title; 0 dB is the loudest point of all of them.
      sample_rate_hz: of all signals.

    Raises:
      UserError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'saf-jax[report]'") from None
    import librosa

    window, hop = 512, 128
    powers = {
        title: np.abs(librosa.stft(np.asarray(signal, np.float32), n_fft=window, hop_length=hop)) ** 2
        for title, signal in signals.items()
    }
    loudest = max(float(power.max()) for power in powers.values()) or 1.0
    # A Figure of its own, not pyplot: no global state, no window system.
    figure = Figure(figsize=(9, 2.4 * len(powers)), layout="constrained")
    axes = figure.subplots(len(powers), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, power) in zip(axes, powers.items()):
        image = axis.imshow(
            10 * np.log10(power / loudest + 1e-9),
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=-80,
            vmax=0,
            extent=(0, power.shape[1] * hop / sample_rate_hz, 0, sample_rate_hz / 2000),
        )
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=list(axes), label="dB", shrink=0.9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
