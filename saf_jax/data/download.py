"""Fetching large archives: resumed where the server allows, retried, checked against what was recorded at first."""

import contextlib
import hashlib
import json
import os
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from saf_jax.errors import UserError
from saf_jax.files import make_folder, user_errors, write_text

RECORD_NAME = "archives.json"
ATTEMPTS = 5
WAIT_SECONDS = 2.0
TIMEOUT_SECONDS = 60.0
# What a broken connection leaves of a chunk is lost.
_CHUNK_BYTES = 1 << 14


def fetch_archives(names: Sequence[str], base_url: str, folder: Path, *, by_hand: str) -> list[Path]:
    """Fetches zip archives that are not there yet, and checks those that are.

    Archives that `record_archives` has written down are verified.

    Args:
      names: file names of the archives.
      base_url: address of the folder that they lie in.
      folder: where they go; a part of an archive waits there as NAME.part.
      by_hand: what a user can do when the server fails, for messages.

    Returns:
      The paths of the archives, in order.

    Raises:
      UserError: pooch is not installed, the server fails, an archive is damaged or differs from the record, or the disk
        is full.
    """
    try:
        import pooch
    except ImportError as error:
        raise UserError("downloads need the package pooch: pip install 'saf-jax[prepare]'") from error

    pooch.get_logger().setLevel("WARNING")
    make_folder(folder)
    record = _read_record(folder / RECORD_NAME)
    cabinet = pooch.create(
        path=folder,
        base_url=base_url.rstrip("/") + "/",
        registry={name: f"sha256:{record[name]['sha256']}" if name in record else None for name in names},
    )
    paths = []
    for name in names:
        path = folder / name
        if path.exists() and name in record and path.stat().st_size != record[name]["bytes"]:
            raise UserError(
                f"{path}: has {path.stat().st_size} bytes instead of {record[name]['bytes']}: delete it and call again"
            )
        with user_errors(path):
            try:
                cabinet.fetch(name, downloader=_Resuming(folder / f"{name}.part", by_hand))
            except ValueError as error:
                # pooch found another checksum than the recorded one.
                raise UserError(
                    f"{path}: what the server gives differs from what it gave at first ({folder / RECORD_NAME}): "
                    f"call again, or delete that record if the archive has been renewed"
                ) from error
        check_zip(path)
        paths.append(path)
    return paths


def record_archives(names: Sequence[str], folder: Path) -> None:
    """Writes down size and SHA-256 of archives that have proved to be whole, for `fetch_archives` to compare with."""
    record = _read_record(folder / RECORD_NAME)
    for name in names:
        if name not in record and (folder / name).exists():
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            record[name] = {"bytes": (folder / name).stat().st_size, "sha256": digest}
    write_text(folder / RECORD_NAME, json.dumps(record, indent=1) + "\n")


def remote_bytes(names: Sequence[str], base_url: str, folder: Path) -> int | None:
    """Bytes that are still to be fetched, as the server states them; None if it does not."""
    import requests

    total = 0
    for name in names:
        if (folder / name).exists():
            continue
        try:
            answer = requests.head(base_url.rstrip("/") + "/" + name, allow_redirects=True, timeout=TIMEOUT_SECONDS)
            answer.raise_for_status()
            total += int(answer.headers["Content-Length"])
        except (requests.RequestException, KeyError, ValueError):
            return None
        part = folder / f"{name}.part"
        total -= part.stat().st_size if part.exists() else 0
    return total


def check_zip(path: Path) -> None:
    """Reads an archive's table of contents.

    Raises:
      UserError: it is no zip archive, or the end with the table is missing.
    """
    try:
        with user_errors(path, "read"), zipfile.ZipFile(path) as archive:
            archive.infolist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is no complete zip archive ({error}): delete it and call again") from error


class _Resuming:
    """A downloader for pooch that keeps what has arrived in a file of its own and goes on from there."""

    def __init__(self, part: Path, by_hand: str):
        self._part = part
        self._notes = part.with_name(part.name + ".json")
        self._by_hand = by_hand

    def __call__(self, url: str, output_file, _pooch) -> None:
        import requests

        failures = 0
        while True:
            before = self._size()
            try:
                if self._fetch(url):
                    break
                trouble = f"the connection ended after {self._size()} bytes"
            except requests.RequestException as error:
                trouble = type(error).__name__
            # What arrives counts: only attempts that bring nothing are numbered.
            failures = 0 if self._size() > before else failures + 1
            if failures >= ATTEMPTS:
                raise UserError(
                    f"{url}: {trouble}, {ATTEMPTS} times: check the network and call again (it goes on), or "
                    f"{self._by_hand}"
                )
            time.sleep(WAIT_SECONDS * failures)
        os.replace(self._part, output_file)
        self._notes.unlink(missing_ok=True)

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _fetch(self, url: str) -> bool:
        """One attempt; True when the file is complete."""
        import requests

        start, notes = self._size(), _read_record(self._notes)
        headers = {"Accept-Encoding": "identity"}
        if start and notes.get("url") == url and notes.get("tag"):
            headers |= {"Range": f"bytes={start}-", "If-Range": notes["tag"]}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as answer:
            if answer.status_code == 416 or answer.status_code >= 500:
                if answer.status_code == 416:
                    self._part.unlink(missing_ok=True)
                raise requests.HTTPError(str(answer.status_code))
            if answer.status_code >= 400:
                raise UserError(f"{url}: the server answers {answer.status_code} ({answer.reason}): {self._by_hand}")
            resumed = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(
                f"bytes {start}-"
            )
            if answer.status_code == 206 and not resumed:
                self._part.unlink(missing_ok=True)
                raise requests.HTTPError("the server sends another part than asked for")
            start = start if resumed else 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            # Weak tags do not promise equal bytes.
            write_text(self._notes, json.dumps({"url": url, "tag": "" if tag.startswith("W/") else tag}))
            with self._part.open("ab" if resumed else "wb") as file:
                for chunk in _with_progress(answer.iter_content(_CHUNK_BYTES), self._part.stem, start, total):
                    file.write(chunk)
        return total is None or self._size() == total


def _with_progress(chunks: Iterator[bytes], name: str, start: int, total: int | None) -> Iterator[bytes]:
    """Shows a bar of what has arrived where somebody looks, else says once what is fetched."""
    if not sys.stderr.isatty():
        size = f"{total / 1e6:.1f} MB" if total else "unknown size"
        print(f"fetching {name} ({size}{f', from {start / 1e6:.1f} MB on' if start else ''})", file=sys.stderr)
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, completed=start)
        for chunk in chunks:
            yield chunk
            progress.update(task, advance=len(chunk))


def _read_record(path: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
    return {}
