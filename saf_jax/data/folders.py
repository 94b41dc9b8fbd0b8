"""Folders that are written as a whole or not at all, and what the names and tables in a folder tell about its files."""

import contextlib
import csv
import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from saf_jax.audio import list_audio
from saf_jax.data.manifest import FILE_NAME, read_manifest
from saf_jax.errors import UserError
from saf_jax.files import make_folder, user_errors

_LABEL_COLUMNS = ("noise", "label", "kind", "category", "speaker_or_label", "speaker")
# A flat folder with at most so many files is taken to hold one kind in each.
_MOST_SINGLE_KINDS = 24
_STALE_SECONDS = 24 * 3600


@contextlib.contextmanager
def whole_folder(path: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that takes its place when the block ends well, and vanishes if not.

    Args:
      path: the folder to write.
      may_replace: says whether an existing folder that is not empty may be thrown away.

    Raises:
      UserError: `path` exists and must not be replaced, or cannot be written.
    """
    # It is what a link leads to that is to be replaced.
    path = path.resolve()
    if path == Path.cwd():
        raise UserError(f"{path}: is the current folder, which cannot be replaced as a whole: name a new one in it")
    make_folder(path.parent)
    with user_errors(path):
        occupied = path.exists() and not (path.is_dir() and not any(path.iterdir()))
        if occupied and not (path.is_dir() and may_replace(path)):
            raise UserError(f"{path}: exists and holds something else: name another folder or empty this one")
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            # Left by a process that was killed; what is younger may still be written by another one.
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        try:
            partial.chmod(0o755)
            yield partial
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def holds_only(folder: Path, names: Collection[str]) -> bool:
    """Whether all files below a folder are among some names, relative to it."""
    return all(path.relative_to(folder).as_posix() in names for path in folder.rglob("*") if not path.is_dir())


def labels(folder: Path) -> dict[Path, str]:
    """The label of each audio file below a folder: the kind of noise, or the speaker.

    It comes from a table if there is one (`manifest.csv` in the folder, or `FOLDER.tsv` or `FOLDER.csv` beside it, with
    a column "file" and one of "noise", "label", "kind", "category", "speaker_or_label", "speaker"), else from the first
    subfolder; in a flat folder with few files each file is a kind of its own, with many it is all one kind, "noise".

    Raises:
      UserError: the folder is missing or empty, or the table lacks a file.
    """
    files = list_audio(folder)
    absolute = Path(os.path.abspath(folder))
    for table in (
        folder / FILE_NAME,
        # Of "." the name is not known yet.
        *(absolute.with_name(absolute.name + ending) for ending in (".tsv", ".csv") if absolute.name),
    ):
        if table.is_file():
            named = _read_labels(table, folder)
            if named is not None:
                missing = [file for file in files if _key(file, folder) not in named]
                if missing:
                    raise UserError(f"{missing[0]}: is not named in {table}: add a line for it or remove the table")
                return {file: named[_key(file, folder)] for file in files}
    parts = [file.relative_to(folder).parts for file in files]
    if any(len(part) > 1 for part in parts):
        return {file: part[0] if len(part) > 1 else "other" for file, part in zip(files, parts)}
    if len(files) <= _MOST_SINGLE_KINDS:
        return {file: file.stem for file in files}
    return dict.fromkeys(files, "noise")


def mixtures_speakers(noisy: Path) -> dict[Path, str]:
    """The speaker of each file in the folder `noisy` of a set that `saf-jax mix` made; empty for other folders.

    Where the set does not know, it is what stands before the last "_" or "-" of the clean recording's name.
    """
    try:
        rows = read_manifest(noisy.parent / FILE_NAME, ("file", "clean_file", "speaker"))
    except UserError:
        return {}
    return {
        noisy.parent / row["file"]: row["speaker"] or before_last_part(Path(row["clean_file"]).stem) for row in rows
    }


def before_last_part(name: str) -> str:
    """What stands before the last "_" or "-", "p226" of "p226_001": often the speaker."""
    return re.sub(r"[_-][^_-]*$", "", name)


def _key(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _read_labels(table: Path, folder: Path) -> dict[str, str] | None:
    """Label by relative name without ending; None where the table is about something else."""
    try:
        # Spreadsheets put a byte order mark before the first column's name.
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: cannot be read as a table: {error}: mend or remove it") from error
    column = next((name for name in _LABEL_COLUMNS if rows and rows[0].get(name)), None)
    if column is None or "file" not in rows[0]:
        return None
    return {_row_key(row["file"], folder): (row[column] or "").strip() for row in rows if row["file"]}


def _row_key(file: str, folder: Path) -> str:
    path = Path(file)
    # `saf-jax prepare folder` writes whole paths.
    if path.is_absolute() and path.is_relative_to(folder.resolve()):
        path = path.relative_to(folder.resolve())
    return path.with_suffix("").as_posix()
