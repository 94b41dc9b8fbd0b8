"""Where the judged files of an evaluation come from: a folder that somebody made, or a network that makes them now."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saf_jax import audio
from saf_jax.composite_measures import CompositeScale
from saf_jax.evaluation_inputs import match_enhanced
from saf_jax.results import ENHANCED, FileResult
from saf_jax.scoring import Task, fingerprint

Track = Callable[[Iterable, int, str], Iterable]
"""Shows progress: (items, total, what) -> the items."""


class EnhancedFolder:
    """Files that exist already, one per pair, of the same names.

    Attributes:
      name: what the results are called if nobody says otherwise.
      remarks: what is out of the ordinary with what is given.
      facts: what summary.json says about the source.
      folder: where the files lie, or None where they are not kept.
    """

    def __init__(self, folder: str | os.PathLike, pairs: Sequence[audio.Pair]):
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        self.facts: dict[str, Any] = {}
        self._files, self.remarks = match_enhanced(self.folder, pairs)

    def tasks(self, pairs: Sequence[audio.Pair], composite_scale: CompositeScale) -> list[Task]:
        """What is to be scored."""
        return _tasks(pairs, self._files, self.folder, composite_scale)

    def make(self, pairs: Sequence[audio.Pair], track: Track) -> tuple[dict[str, FileResult], list[str]]:
        """Nothing to make; a missing file fails when it is scored."""
        return {}, []

    def seconds(self) -> dict[str, float | None]:
        """Time within the network, and length of the audio that went through it."""
        return {"network": None, "network_audio": None}

    def finish(self) -> None:
        """Somebody else's files stay."""


class EnhancedByNetwork:
    """Files that a network makes, in `enhanced` of the results folder; attributes as those of `EnhancedFolder`."""

    def __init__(self, weights: str | os.PathLike, pairs: Sequence[audio.Pair], out: Path, keep_audio: bool):
        from saf_jax.config import config_to_dict
        from saf_jax.evaluation_network import Clock, check_targets, load_network
        from saf_jax.info import describe

        self._made = out / (ENHANCED if keep_audio else f".{ENHANCED}")
        check_targets(pairs, self._made)
        self._network, self._clock = load_network(os.fspath(weights)), Clock()
        self.folder = self._made if keep_audio else None
        # Not `stem`: what follows the dot in runs/lr0.001 is no ending.
        self.name = Path(os.path.abspath(weights)).name.removesuffix(".safetensors")
        self.remarks: list[str] = []
        described = describe(self._network.config)
        self.facts = {
            "parameters": described["parameters"],
            "gmac_per_second": described["gmac_per_second"],
            "weights": os.fspath(weights),
            "weights_hash": self._network.fingerprint,
            "config": config_to_dict(self._network.config),
        }

    def tasks(self, pairs: Sequence[audio.Pair], composite_scale: CompositeScale) -> list[Task]:
        """What is to be scored; a file that should be kept but is gone is known by another fingerprint."""
        from saf_jax.evaluation_network import output_path

        files = {pair.name: output_path(self._made, pair.name) for pair in pairs}
        identity = {
            file: self._network.fingerprint if self.folder is None or path.is_file() else "to be made"
            for file, path in files.items()
        }
        return _tasks(pairs, files, self._made, composite_scale, identity)

    def make(self, pairs: Sequence[audio.Pair], track: Track) -> tuple[dict[str, FileResult], list[str]]:
        """Enhances the noisy files of the pairs; gives the results of those that failed, and remarks."""
        from saf_jax.evaluation_network import enhance_pairs

        failed, clipped = {}, 0
        for outcome in track(enhance_pairs(self._network, pairs, self._made, self._clock), len(pairs), "enhancing"):
            clipped += outcome.clipped_samples > 0
            if outcome.failure:
                failed[outcome.file] = FileResult(outcome.file, {}, failures={"file": outcome.failure})
        return failed, [f"{clipped} enhanced files reach beyond full scale, which 16-bit files clip"] if clipped else []

    def seconds(self) -> dict[str, float | None]:
        """Time within the network, compilation included, and length of the audio that went through it."""
        return {
            "network": round(self._clock.network_seconds, 3),
            "network_audio": round(self._clock.audio_seconds, 3),
        }

    def finish(self) -> None:
        """Removes the files unless they are to be kept."""
        if self.folder is None:
            shutil.rmtree(self._made, ignore_errors=True)


def _tasks(
    pairs: Sequence[audio.Pair],
    files: Mapping[str, Path],
    folder: Path,
    composite_scale: CompositeScale,
    identity: Mapping[str, str] | None = None,
) -> list[Task]:
    """One task per pair; a judged file is known by `identity`, or by its size and time."""
    tasks = []
    for pair in pairs:
        path = files.get(pair.name)
        known_by = path if identity is None else identity[pair.name]
        stamp = fingerprint(pair.clean, pair.noisy, known_by, composite_scale)
        tasks.append(Task(pair.name, pair.clean, pair.noisy, path, str(folder / pair.name), composite_scale, stamp))
    return tasks
