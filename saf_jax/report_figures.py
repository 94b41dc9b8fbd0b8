"""Pictures for reports, as data URIs: box plots, curves and spectrograms. Needs matplotlib."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np

from saf_jax.run_log import Curve

COLOURS = {"noisy": "#a8561f", "enhanced": "#1f6f8b", "clean": "#5b6b73"}
"""One colour per kind of recording, the same in pictures and on the page."""

_CURVE_COLOURS = {**COLOURS, "training": "#5b6b73", "validation": "#1f6f8b"}

RANGE_DB = 80.0
_DPI = 110
_WINDOW, _HOP = 512, 128


def picture(figure, kind: str) -> str:
    """A matplotlib Figure as "png" or "webp" in a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=_DPI)
    return data_uri(buffer.getvalue(), f"image/{kind}")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def box_plot(noisy: Sequence[float], enhanced: Sequence[float]) -> str:
    """Spread over files, the noisy input beside its enhanced version, with every file as a dot.

    Args:
      noisy: a metric's value per file.
      enhanced: the same for the enhanced files.
    """
    # Figure without pyplot: no global state, no window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9, 2.7), layout="constrained")
    axes = figure.subplots()
    random = np.random.default_rng(0)
    for place, (name, values) in enumerate({"noisy": noisy, "enhanced": enhanced}.items()):
        if not len(values):
            continue
        colour = COLOURS[name]
        axes.boxplot(
            [values],
            positions=[place],
            widths=0.5,
            showfliers=False,
            medianprops={"color": colour, "linewidth": 2},
            boxprops={"color": colour},
            whiskerprops={"color": colour},
            capprops={"color": colour},
        )
        spread = place + random.uniform(-0.16, 0.16, len(values))
        axes.plot(spread, values, ".", color=colour, alpha=0.35, markersize=3)
    axes.set_xticks([0, 1], ["noisy", "enhanced"])
    axes.set_xlim(-0.5, 1.5)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return picture(figure, "png")


def line_plot(curves: Mapping[str, Curve], *, log_scale: bool) -> str:
    """Quantities over steps.

    Args:
      curves: by name; points that lie far apart, such as validations, are marked.
      log_scale: logarithmic where all values are positive and span more than a factor of 5.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.2, 2.4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(
            points.steps,
            points.values,
            label=name,
            color=_CURVE_COLOURS.get(name, COLOURS["enhanced"]),
            linewidth=1.2,
            linestyle="--" if name == "noisy" else "-",
            marker="o" if len(points.steps) <= 40 and name != "noisy" else None,
            markersize=3,
        )
    lowest = min(points.values.min() for points in curves.values())
    if log_scale and 0 < 5 * lowest < max(points.values.max() for points in curves.values()):
        axes.set_yscale("log")
    axes.set_xlabel("step", labelpad=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    return picture(figure, "png")


def spectrogram_db(samples: np.ndarray) -> np.ndarray:
    """Power over time and frequency in dB: [N] -> [bins, frames]; Hann window of 512 samples, hop 128."""
    padded = np.pad(np.asarray(samples, np.float64), _WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    spectrum = np.fft.rfft(frames * np.hanning(_WINDOW), axis=1)
    return 10.0 * np.log10(np.square(np.abs(spectrum)).T + 1e-12)


def spectrogram(power_db: np.ndarray, top_db: float, seconds: float, highest_hz: float) -> str:
    """A picture of a spectrogram.

    Args:
      power_db: [bins, frames].
      top_db: power that gets the brightest colour; 80 dB below it is the darkest.
      seconds: length of the recording.
      highest_hz: frequency of the last bin.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 2.3), layout="constrained")
    axes = figure.subplots()
    axes.imshow(
        power_db,
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, highest_hz / 1000),
        vmin=top_db - RANGE_DB,
        vmax=top_db,
        cmap="magma",
        interpolation="nearest",
    )
    axes.set_xlabel("s", labelpad=0)
    axes.set_ylabel("kHz")
    # Lossy: the grain of a spectrogram makes PNG five times as large.
    return picture(figure, "webp")
