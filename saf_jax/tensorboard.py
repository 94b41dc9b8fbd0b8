"""A training run's log, spectrograms and sounds for TensorBoard; needs tensorboardX and matplotlib."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saf_jax import report_figures
from saf_jax.errors import UserError
from saf_jax.observers import ListeningFile, Observer

FOLDER = "tensorboard"
_LONGEST_SECONDS = 8.0


def check_packages() -> None:
    """Raises `UserError` where a package that TensorBoard's files need is missing."""
    for package in ("tensorboardX", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"TensorBoard files need the package {package}: pip install 'saf-jax[tensorboard]'")


class TensorBoard(Observer):
    """Writes what `tensorboard --logdir RUN` shows, in a thread of its own.

    Args:
      workdir: folder of the run.
      sample_rate_hz: of the files to listen to.
    """

    def __init__(self, workdir: Path, sample_rate_hz: int):
        check_packages()
        self._folder, self._rate_hz = workdir / FOLDER, sample_rate_hz
        self._writer: Any = None
        self._has_inputs = False

    def show(self, entry: dict[str, Any]) -> None:
        """Takes an entry of the log: its numbers become scalars under the name of its event."""
        event, step = entry["event"], entry["step"]
        if event == "start":
            import tensorboardX

            # What an interrupted run wrote beyond the checkpoint that it goes on from is hidden.
            self._writer = tensorboardX.SummaryWriter(str(self._folder), purge_step=step + 1)
        elif event in ("train", "valid", "scores"):
            for name, value in entry.items():
                if name not in ("unix_seconds", "event", "step"):
                    self._writer.add_scalar(f"{event}/{name}", float(value), step)

    def hear(self, step: int, files: Sequence[ListeningFile]) -> None:
        """Takes validation files: spectrograms and sounds of the enhanced ones, and once of the others."""
        if self._writer is None:
            # A resumed run scores the validation that it goes on from again, before its start; it was heard before.
            return
        for file in files:
            sides = {side: samples[: round(_LONGEST_SECONDS * self._rate_hz)] for side, samples in file.sides.items()}
            powers = {side: report_figures.spectrogram_db(samples) for side, samples in sides.items()}
            top_db = max(power.max() for power in powers.values())
            for side, samples in sides.items():
                if side == "enhanced" or not self._has_inputs:
                    tag = f"{file.name}/{side}"
                    self._writer.add_image(tag, _picture(powers[side], top_db), step, dataformats="HWC")
                    self._writer.add_audio(tag, np.clip(samples, -1, 1), step, sample_rate=self._rate_hz)
        self._has_inputs = True

    def close(self) -> None:
        """Writes out what is left."""
        if self._writer is not None:
            self._writer.close()


def _picture(power_db: np.ndarray, top_db: float) -> np.ndarray:
    """A spectrogram [bins, frames] in colours, low frequencies at the bottom: uint8 [bins, frames, 3]."""
    from matplotlib import colormaps

    level = np.clip(1 + (power_db - top_db) / report_figures.RANGE_DB, 0, 1)
    return colormaps["magma"](level[::-1], bytes=True)[..., :3]
