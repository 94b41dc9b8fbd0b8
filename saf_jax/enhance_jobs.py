"""Which files are enhanced and where they go: folders, patterns, outputs, backups."""

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from saf_jax import audio
from saf_jax.audio_blocks import Recording
from saf_jax.errors import UserError
from saf_jax.files import user_errors


class Job(NamedTuple):
    """One recording and where its enhanced version goes.

    Attributes:
      recording: what is read.
      target: what is written.
      backup: the recording itself is replaced; it is kept under another name.
    """

    recording: Recording
    target: Path
    backup: bool = False

    @property
    def source(self) -> Path:
        return self.recording.path


class _Found(NamedTuple):
    """A file, and its place below the output folder."""

    path: Path
    place: Path


def plan_jobs(inputs: Iterable[str], out: Path) -> list[Job]:
    """Names the output of every input; folders and patterns keep their tree.

    Args:
      inputs: files, folders (all audio files below them) or patterns with `*`, `?`, `[...]` and `**`.
      out: the output folder, or, if it ends like an audio file and is no folder, the output of a single input file.
        Where the folder lies inside an input folder, what is in it is not read.

    Raises:
      UserError: a missing input, two inputs with one output, an output that would replace its own input, or the name
        of a file where a folder is needed or that cannot be written.
    """
    inputs = list(inputs)
    if audio.names_audio(out) and not out.is_dir():
        if len(inputs) > 1 or Path(inputs[0]).is_dir() or _is_pattern(inputs[0]):
            raise UserError(f"{out}: is named like a file, and more than one may come: name a folder with -o")
        audio.containers_of(out)
        found = [_Found(_existing(inputs[0]), Path())]
    else:
        found = [item for name in inputs for item in _expand(name, out)]
    jobs: dict[Path, Job] = {}
    for path, place in found:
        job = Job(Recording(path, str(path)), out / place)
        if job.target.resolve() == path.resolve():
            raise UserError(f"{path}: the output would replace the input: choose another output folder or --in-place")
        other = jobs.setdefault(job.target, job)
        if other.source != path:
            both = f"{path} and {other.source}"
            raise UserError(f"{both}: both would be written to {job.target}: rename one")
    return list(jobs.values())


def plan_in_place(inputs: Iterable[str]) -> list[Job]:
    """Every input takes its own place.

    Raises:
      UserError: a missing input.
    """
    jobs: dict[Path, Job] = {}
    for name in inputs:
        for path, _ in _expand(name, None):
            # The file that a link leads to is replaced, not the link.
            target = path.resolve()
            jobs.setdefault(target, Job(Recording(path, str(path)), target, backup=True))
    return list(jobs.values())


def _is_pattern(name: str) -> bool:
    """A file of that very name comes first: names may hold brackets."""
    return glob.has_magic(name) and not Path(name).exists()


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder: check the path")
    return path


def _expand(name: str, out: Path | None) -> Iterator[_Found]:
    if _is_pattern(name):
        yield from _match(name, out)
    elif (path := _existing(name)).is_dir():
        yield from _outside(audio.list_audio(path), path, out, name)
    else:
        yield _Found(path, Path(path.name))


def _match(pattern: str, out: Path | None) -> Iterator[_Found]:
    """The audio files that a pattern matches, and those below the folders that it matches.

    Their tree starts where the pattern has its first wildcard.
    """
    parts = Path(pattern).parts
    root = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    files: dict[Path, None] = {}
    for match in sorted(Path(name) for name in glob.glob(pattern, recursive=True)):
        if match.is_dir():
            # A folder without audio is none of the files.
            with contextlib.suppress(UserError):
                files.update(dict.fromkeys(audio.list_audio(match)))
        elif match.suffix.lower() in audio.SUFFIXES:
            files[match] = None
    if not files:
        raise UserError(f"{pattern}: matches no audio file: check the pattern")
    yield from _outside(files, root, out, pattern)


def _outside(files: Iterable[Path], root: Path, out: Path | None, name: str) -> Iterator[_Found]:
    """Passes over what an earlier call wrote, where the output folder lies inside the input folder."""
    skipped = out.resolve() if out is not None and root.resolve() in out.resolve().parents else None
    found = [file for file in files if skipped is None or not file.resolve().is_relative_to(skipped)]
    if not found:
        raise UserError(f"{name}: no audio file there besides those in the output folder: check the path")
    for file in found:
        yield _Found(file, file.relative_to(root))


def back_up(path: Path) -> Path:
    """Gives a file a second name, `NAME.bak` or the next free `NAME.bak2`, ...; never takes one that exists.

    Raises:
      UserError: the folder takes no further file.
    """
    number = 1
    with user_errors(path, "back up"):
        while True:
            backup = path.with_name(f"{path.name}.bak{number if number > 1 else ''}")
            try:
                _duplicate(path, backup)
            except FileExistsError:
                number += 1
            else:
                return backup


def _duplicate(path: Path, backup: Path) -> None:
    """A hard link, or a copy where the file system has none; fails if the name is taken."""
    try:
        os.link(path, backup)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        with backup.open("xb") as copy:
            try:
                with path.open("rb") as original:
                    shutil.copyfileobj(original, copy)
                copy.flush()
                os.fsync(copy.fileno())
            except BaseException:
                backup.unlink()
                raise
        shutil.copystat(path, backup)
