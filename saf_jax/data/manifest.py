"""Manifests: the table beside a corpus that says what each file is."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from saf_jax.errors import UserError
from saf_jax.files import explain_os_error, write_text

FILE_NAME = "manifest.csv"


def write_manifest(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a table as CSV with a heading, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def check_manifest(path: str | os.PathLike, columns: Sequence[str]) -> None:
    """Whether a table may be written there: nothing else must be lost by it.

    Raises:
      UserError: there is one with other columns.
    """
    if os.path.lexists(path):
        try:
            read_manifest(path, columns)
        except UserError as error:
            raise UserError(f"{path}: is another table, which would be replaced: name another --root") from error


def read_manifest(path: str | os.PathLike, needed: Sequence[str] = ()) -> list[dict[str, str]]:
    """Reads a table: one mapping from column to text per row.

    Raises:
      UserError: no such file, not a table, or a needed column is missing.
    """
    path = Path(path)
    try:
        # Spreadsheets put a byte order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = explain_os_error(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be read as a manifest: {reason}") from error
    if missing := [column for column in needed if column not in columns]:
        raise UserError(f"{path}: is no manifest: the column {missing[0]!r} is missing (found: {', '.join(columns)})")
    if broken := [number for number, row in enumerate(rows, 2) if None in row or None in row.values()]:
        raise UserError(f"{path}: line {broken[0]} has not as many fields as the heading: make the manifest again")
    return rows
