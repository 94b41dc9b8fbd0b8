"""Writing files so that a reader sees the old content or the whole new one, never a part."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from saf_jax.errors import UserError

_MEND = {
    errno.ENOSPC: "no space left on the device: free some space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space, then run the same command again",
    errno.EACCES: "permission denied: choose a folder that you may write to",
    errno.EPERM: "operation not permitted: choose a folder that you may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder",
    errno.EISDIR: "it is a folder: give a file name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


def explain_os_error(error: OSError) -> str:
    """One clause that says what went wrong and how to mend it."""
    return _MEND.get(error.errno or 0, (error.strerror or str(error) or type(error).__name__).lower())


@contextlib.contextmanager
def user_errors(path: str | os.PathLike, doing: str = "write") -> Iterator[None]:
    """Turns an OSError inside the block into a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {doing} {path}: {explain_os_error(error)}") from error


def make_folder(path: str | os.PathLike) -> Path:
    """Creates a folder and its parents; a fault is a `UserError` that names it."""
    folder = Path(path)
    with user_errors(folder, "create the folder"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UserError(f"cannot create the folder {folder}: a file of that name exists: choose another") from error
    return folder


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary name beside `path`; when the block ends well, it is flushed and renamed to `path`.

    If the block raises, the temporary file is removed and `path` stays as it was. The temporary name keeps the
    suffix, since libraries choose formats by it, and starts with a dot, so that folder listings pass over it.

    Args:
      path: the file to write; its folder is created.

    Raises:
      UserError: the folder cannot be created or the file not written; names the file.
    """
    path = Path(path)
    make_folder(path.parent)
    with user_errors(path):
        # 40 characters, at most 160 bytes: the temporary name must fit into a file system's 255 bytes in any script.
        temporary = path.parent / f".{path.stem[:40]}.{secrets.token_hex(4)}.partial{path.suffix}"
        # With the permissions that an ordinary open() gives, which those of the tempfile module have not.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically, in UTF-8.

    Bytes of file names that are no UTF-8 are written as JSON escapes them (\\udce8): hours of work are not lost for
    a name.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
