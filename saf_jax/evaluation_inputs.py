"""What an evaluation is given: which files belong together, what they hold, and whether the folders look right."""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from saf_jax import audio, conditions
from saf_jax.data.manifest import FILE_NAME as MANIFEST_NAME
from saf_jax.errors import UserError
from saf_jax.metrics import SAMPLE_RATE_HZ

LOG_NAME = "log_testset.txt"
"""The log of Voice Bank + DEMAND; taken by itself where it lies one or two folders above the noisy files."""

_SWAP_SAMPLE_FILES = 10
_SWAP_MARGIN_DB = 1.0


def check_names(files: Iterable[Path]) -> None:
    """Raises `UserError` for a file whose name is not UTF-8: what is written about it is."""
    for path in files:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{path}: its name is not UTF-8, as results need it: rename it") from error


def match_enhanced(folder: Path, pairs: Sequence[audio.Pair]) -> tuple[dict[str, Path], list[str]]:
    """Finds the enhanced file of each pair.

    Returns:
      Paths by name of the pair (pairs without such a file are left out), and remarks.

    Raises:
      UserError: no such folder, two of its files have one name, or none of them belongs to a pair.
    """
    found = audio.named_files(folder)
    names = {pair.name for pair in pairs}
    matched = {name: path for name, path in found.items() if name in names}
    if not matched:
        raise UserError(
            f"{folder}: no file is named like a clean one (such as {pairs[0].name}): give files of the same names"
        )
    remarks = []
    if extra := len(found) - len(matched):
        remarks.append(f"{extra} files in {folder} have no clean file of that name: passed over")
    return matched, remarks


def find_conditions(
    pairs: Sequence[audio.Pair],
    clean: Path,
    noisy: Path,
    log_file: str | os.PathLike | None,
    manifest: str | os.PathLike | None,
) -> tuple[conditions.Conditions, list[str]]:
    """Conditions of the pairs from the named files; without any, from a log or manifest that lies above the folders.

    Returns:
      The conditions, and remarks.

    Raises:
      UserError: a named file cannot be read, or tells nothing about any pair.
    """
    files = {pair.name: (pair.noisy, pair.clean) for pair in pairs}
    if log_file is None and manifest is None:
        return _conditions_nearby(noisy, files), []
    known: conditions.Conditions = {}
    remarks = []
    for read, path in ((conditions.read_log, log_file), (conditions.read_manifest, manifest)):
        if path is None:
            continue
        matched = conditions.match(read(path), files)
        if not matched:
            raise UserError(f"{path}: names none of the files in {clean} (such as {pairs[0].name}): give its own log")
        if len(matched) < len(pairs):
            remarks.append(f"{path} says nothing about {len(pairs) - len(matched)} of {len(pairs)} files")
        for file, entry in matched.items():
            known[file] = known.get(file, {}) | entry
    return known, remarks


def _conditions_nearby(noisy: Path, files: Mapping[str, Sequence[Path]]) -> conditions.Conditions:
    """Conditions from a file that nobody named: it is taken if it fits, else passed over."""
    for folder in noisy.resolve().parents[:2]:
        for read, name in ((conditions.read_log, LOG_NAME), (conditions.read_manifest, MANIFEST_NAME)):
            if (folder / name).is_file():
                with contextlib.suppress(UserError):
                    if matched := conditions.match(read(folder / name), files):
                        return matched
    return {}


def suspicions(clean: Path, noisy: Path, pairs: Sequence[audio.Pair]) -> list[str]:
    """What looks wrong about the two folders: one given twice, or clean and noisy swapped."""
    if os.path.samefile(clean, noisy):
        return [
            f"--clean and --noisy are the same folder ({clean}): figures for the noisy input are those of clean speech"
        ]
    sample = pairs[:: max(1, len(pairs) // _SWAP_SAMPLE_FILES)]
    differences = []
    for pair in sample:
        try:
            clean_range, noisy_range = (
                dynamic_range_db(audio.read_mono(path, SAMPLE_RATE_HZ)) for path in (pair.clean, pair.noisy)
            )
        except UserError:
            # Is reported when the file is scored.
            continue
        differences.append(clean_range - noisy_range)
    swapped = sum(difference < -_SWAP_MARGIN_DB for difference in differences)
    if swapped * 2 > len(differences):
        return [
            f"the files in --clean ({clean}) are noisier than those in --noisy ({noisy}) in {swapped} of "
            f"{len(differences)} pairs looked at: are the two folders swapped?"
        ]
    return []


def dynamic_range_db(samples: np.ndarray) -> float:
    """Level of the loud frames over that of the quiet ones (95th and 10th percentile of 20 ms), which noise narrows."""
    frame = SAMPLE_RATE_HZ // 50
    frames = samples[: len(samples) // frame * frame].astype(np.float64).reshape(-1, frame)
    if not len(frames):
        return 0.0
    level_db = 10.0 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
    loud, quiet = np.percentile(level_db, [95, 10])
    return float(loud - quiet)


def command_line(arguments: Mapping[str, object]) -> str:
    """The command that gives the same evaluation, from the arguments of `saf_jax.evaluation.evaluate`."""
    import shlex

    words = ["saf-jax", "eval"]
    for name, value in arguments.items():
        if value is not None and value is not False:
            words.append(f"--{name.replace('_', '-')}")
            if value is not True:
                words.append(os.fspath(value) if isinstance(value, os.PathLike) else str(value))
    return shlex.join(words)
