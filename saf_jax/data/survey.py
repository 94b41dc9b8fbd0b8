"""Looking through folders of speech and noise: what can be trained on, what not and why, and who speaks where."""

import hashlib
import math
import os
import re
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saf_jax import audio
from saf_jax.data.active_level import rms_db
from saf_jax.data.progress_bar import track
from saf_jax.errors import UserError
from saf_jax.worker_processes import usable_cores

SPLITS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}
"""Names of folders that tell to which part of the data their files belong."""
_SILENCE_DB = -80.0
_LOWEST_RATE_HZ = 4000
_CLIPPED_PART = 1e-4


class Rules(NamedTuple):
    """What counts as good.

    Attributes:
      min_seconds: shorter recordings are left out.
      speaker: where names of speakers come from: "folder", "prefix" (of the file name up to the first "_" or "-"),
        "none", or "auto" (folders where there are some, else prefixes where all files have one).
      valid_part: part of the speakers (of the files, for noise) that goes to the validation set, where folders do not
        tell.
    """

    min_seconds: float = 0.5
    speaker: str = "auto"
    valid_part: float = 0.05


class Finding(NamedTuple):
    """A recording that was looked at; `problem` is empty if it can be used."""

    path: Path
    kind: str
    split: str
    label: str
    seconds: float
    sample_rate_hz: int
    channels: int
    digest: str
    problem: str


def survey(folders: Iterable[tuple[str, Path]], rules: Rules) -> list[Finding]:
    """Looks at every audio file below some folders.

    Args:
      folders: pairs of a kind ("clean", "noise", "rir") and a folder.
      rules: what counts as good.

    Returns:
      What was found, sorted; the second of two recordings with the same samples counts as a problem.

    Raises:
      UserError: a folder is missing or has no audio, two hold the same file, or a speaker occurs in two parts of the
        data.
    """
    jobs: list[tuple[Path, str, str, str]] = []
    homes: dict[Path, Path] = {}
    for kind, folder in folders:
        files = _candidates(folder)
        for file in files:
            # Each folder is divided by itself: a file of two could go to both parts.
            if homes.setdefault(file.resolve(), folder) is not folder:
                raise UserError(
                    f"{display(file)}: lies in {homes[file.resolve()]} too: name folders that share no file"
                )
        splits, rest = _splits(files, folder)
        names = _labels(files, rest, rules.speaker if kind == "clean" else "auto")
        if splits is None:
            splits = _draw_splits(
                files, folder, names if kind == "clean" else {}, rules.valid_part if kind != "rir" else 0.0
            )
        jobs += [(file, kind, splits[file], names[file]) for file in files]
    with ThreadPoolExecutor(usable_cores()) as pool:
        looked = pool.map(lambda job: _look(*job, rules), jobs)
        found = sorted(track(looked, "looking", len(jobs)), key=lambda finding: (finding.kind, str(finding.path)))
    found = _mark_duplicates(found)
    _check_speakers(found)
    return found


def display(path: Path) -> str:
    """A path on one line, whatever bytes its name holds."""
    return " ".join(os.fsencode(path).decode("utf-8", errors="replace").split())


def _candidates(folder: Path) -> list[Path]:
    """Everything with an audio file's name, also what turns out to be no file."""
    if not folder.is_dir():
        audio.list_audio(folder)
    found = sorted(
        p
        for p in [
            *audio.visible_files(folder),
            *(p for p in folder.rglob("*") if p.is_dir() and not _hidden(p, folder)),
        ]
        if p.suffix.lower() in audio.SUFFIXES
    )
    if not found:
        raise UserError(f"{folder}: holds no audio file ({', '.join(sorted(audio.SUFFIXES))})")
    return found


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _splits(files: list[Path], folder: Path) -> tuple[dict[Path, str] | None, dict[Path, tuple[str, ...]]]:
    """The split of each file if all lie in folders named after splits, and the folders below that."""
    parts = {file: file.relative_to(folder).parts for file in files}
    if all(len(part) > 1 and part[0].lower() in SPLITS for part in parts.values()):
        return (
            {file: SPLITS[part[0].lower()] for file, part in parts.items()},
            {file: part[1:] for file, part in parts.items()},
        )
    return None, parts


def _labels(files: list[Path], parts: dict[Path, tuple[str, ...]], way: str) -> dict[Path, str]:
    if way == "auto":
        in_folders = any(len(part) > 1 for part in parts.values())
        way = (
            "folder"
            if in_folders
            else "prefix"
            if all(re.match(r"[^_-]+[_-]", file.name) for file in files)
            else "none"
        )
    if way == "folder":
        return {file: part[0] if len(part) > 1 else "" for file, part in parts.items()}
    if way == "prefix":
        return {file: re.split(r"[_-]", file.stem)[0] for file in files}
    return dict.fromkeys(files, "")


def _draw_splits(files: list[Path], folder: Path, names: dict[Path, str], valid_part: float) -> dict[Path, str]:
    """Gives whole speakers (or single files, where there are no names) to validation, the same ones every time."""
    owners = {file: names.get(file) or file.relative_to(folder).as_posix() for file in files}
    distinct = sorted(set(owners.values()), key=lambda name: (zlib.crc32(os.fsencode(name)), name))
    # One is never enough for both parts.
    count = min(math.ceil(valid_part * len(distinct)), len(distinct) - 1)
    chosen = set(distinct[:count])
    return {file: "valid" if owner in chosen else "train" for file, owner in owners.items()}


def _look(path: Path, kind: str, split: str, label: str, rules: Rules) -> Finding:
    def found(problem: str, recording: audio.Audio | None = None, digest: str = "") -> Finding:
        if recording is None:
            return Finding(path, kind, split, label, 0.0, 0, 0, digest, problem)
        samples, rate = recording.samples, recording.sample_rate_hz
        return Finding(path, kind, split, label, len(samples) / rate, rate, samples.shape[1], digest, problem)

    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return found("its name is not valid UTF-8: rename it")
    if "\n" in str(path) or "\r" in str(path):
        return found("its name holds a line break: rename it")
    if not path.is_file():
        return found("is no file (a folder, a pipe or a broken link): remove it")
    try:
        recording = audio.read(path)
    except UserError as error:
        return found(str(error).removeprefix(f"{path}: "))
    mono = recording.samples.mean(axis=1, dtype=np.float32)
    if recording.sample_rate_hz < _LOWEST_RATE_HZ:
        return found(f"a rate of {recording.sample_rate_hz} Hz carries no speech: record it again", recording)
    if kind != "rir" and len(mono) < rules.min_seconds * recording.sample_rate_hz:
        return found(f"is shorter than {rules.min_seconds:g} s: join it with others or lower --min-seconds", recording)
    if rms_db(mono - mono.mean()) < _SILENCE_DB:
        return found("is silent: record it again", recording)
    if kind == "clean" and (part := _clipped_part(mono)) > _CLIPPED_PART:
        return found(
            f"is clipped ({100 * part:.2f} % of its samples): a target must not be: record it again", recording
        )
    steps = np.rint(mono * 32768).astype(np.int32)
    return found("", recording, hashlib.sha256(steps.tobytes()).hexdigest())


def _clipped_part(mono: np.ndarray) -> float:
    """Part of the samples that lie in runs of three or more at the largest value, if that is near full scale."""
    peak = float(np.abs(mono).max())
    if peak < 0.9:
        return 0.0
    at_limit = np.abs(mono) >= 0.9999 * peak
    inner = at_limit[:-2] & at_limit[1:-1] & at_limit[2:]
    return float(np.count_nonzero(inner)) / len(mono)


def _mark_duplicates(found: list[Finding]) -> list[Finding]:
    first: dict[str, Path] = {}
    result = []
    for finding in found:
        if not finding.problem and (twin := first.setdefault(finding.digest, finding.path)) != finding.path:
            finding = finding._replace(problem=f"holds the same samples as {display(twin)}: remove one")
        result.append(finding)
    return result


def _check_speakers(found: list[Finding]) -> None:
    where: dict[str, Finding] = {}
    for finding in found:
        if finding.kind != "clean" or finding.problem or not finding.label:
            continue
        other = where.setdefault(finding.label, finding)
        if other.split != finding.split:
            raise UserError(
                f"speaker {finding.label} occurs in {other.split} ({other.path}) and in {finding.split} "
                f"({finding.path}): move one of them, or say --speaker none if these are no speakers"
            )
