"""What watches a training run without having a part in it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class ListeningFile(NamedTuple):
    """A validation file to look at and listen to.

    Attributes:
      name: of the pair.
      sides: "noisy", "enhanced" and "clean": float32 [N] at the config's rate.
    """

    name: str
    sides: dict[str, np.ndarray]


class Observer:
    """Something that shows a run to people; in the main process only. What is not overridden does nothing."""

    def show(self, entry: dict[str, Any]) -> None:
        """Takes an entry of the log."""

    def hear(self, step: int, files: Sequence[ListeningFile]) -> None:
        """Takes the files to listen to of the validation at a step."""

    def close(self) -> None:
        """Writes out what is left."""
