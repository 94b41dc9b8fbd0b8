"""What HTML pages are made of: the template's rendering, and recordings to look at and listen to."""

import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saf_jax import audio
from saf_jax.errors import UserError
from saf_jax.metrics import SAMPLE_RATE_HZ

FILE_NAME = "report.html"
_LONGEST_SECONDS = 20.0


def check_packages() -> None:
    """Raises `UserError` where a package that pages need is missing."""
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"report needs the package {package}: pip install 'saf-jax[report]'")


def render(template: str, content: Mapping[str, Any]) -> str:
    """A template of this package filled in; every name that it uses must be there."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def sides(paths: Mapping[str, Path | None]) -> list[dict[str, Any]]:
    """Spectrogram and sound of each version of a file, all on one scale; a note where there is none."""
    from saf_jax import report_figures

    signals, notes = {}, {}
    for side, path in paths.items():
        try:
            if path is None:
                raise UserError("the recording is not there any more, or was not kept")
            samples = audio.read_mono(path, SAMPLE_RATE_HZ)
            signals[side] = samples[: round(_LONGEST_SECONDS * SAMPLE_RATE_HZ)]
        except UserError as error:
            notes[side] = str(error)
    powers = {side: report_figures.spectrogram_db(samples) for side, samples in signals.items()}
    top_db = max((power.max() for power in powers.values()), default=0.0)
    shown = []
    for side in paths:
        entry: dict[str, Any] = {"side": side, "note": notes.get(side)}
        if side in signals:
            seconds = len(signals[side]) / SAMPLE_RATE_HZ
            entry["picture"] = report_figures.spectrogram(powers[side], top_db, seconds, SAMPLE_RATE_HZ / 2)
            entry["sound"] = report_figures.data_uri(_flac(signals[side]), "audio/flac")
        shown.append(entry)
    return shown


def _flac(samples: np.ndarray) -> bytes:
    """16-bit FLAC, which browsers play, at half the size of wav."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
