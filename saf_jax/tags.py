"""What a file says about its recording besides the samples: titles, cue points, pictures, broadcast chunks."""

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

from saf_jax.audio_blocks import Recording, open_recording

TEXT_FIELDS = (
    "title", "copyright", "software", "artist", "comment", "date", "album", "license", "tracknumber", "genre",
)  # fmt: skip
"""soundfile's text fields."""

# Chunks that describe the stored samples themselves: the new file has its own.
_OWN_CHUNKS = {b"fmt ", b"data", b"fact", b"PEAK", b"ds64", b"levl", b"COMM", b"SSND", b"FVER"}
_FILLERS = {b"JUNK", b"junk", b"PAD ", b"FLLR"}
_RIFF, _AIFF = {"WAV", "WAVEX", "RF64"}, {"AIFF"}
# Order of bytes by the first four of a file.
_ORDERS = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">", b"FORM": ">"}
_TAGGED = {"FLAC", "OGG", "MP3"}
# Chunks are held in memory while they are copied.
_MOST_BYTES = 64 << 20


def read_texts(recording: Recording, source: str, target: str) -> dict[str, str]:
    """The text fields that soundfile itself must write into a file of container `target`.

    None where `copy_tags` copies all there is: between files of one container that it knows.
    """
    if _copies(source, target):
        return {}
    with open_recording(recording) as file:
        return {name: text for name in TEXT_FIELDS if (text := getattr(file, name))}


def copy_tags(source: Path, target: Path, source_container: str, target_container: str) -> str:
    """Copies what soundfile does not: all chunks of wav and aiff files, all tags and pictures of flac, ogg and mp3.

    Args:
      source: the recording's file.
      target: a complete audio file of the same length.
      source_container: soundfile's names of their containers.
      target_container: likewise.

    Returns:
      A remark on what could not be kept, or "".
    """
    if not _copies(source_container, target_container):
        return ""
    if source_container in _TAGGED:
        return _copy_with_mutagen(source, target)
    return _append_chunks(source, target)


def _copies(source: str, target: str) -> bool:
    if any(source in family and target in family for family in (_RIFF, _AIFF)):
        return True
    return source == target and source in _TAGGED and _has_mutagen()


def _has_mutagen() -> bool:
    import importlib.util

    return importlib.util.find_spec("mutagen") is not None


def _copy_with_mutagen(source: Path, target: Path) -> str:
    import mutagen
    from mutagen.id3 import ID3

    try:
        old, new = mutagen.File(source), mutagen.File(target)
        if old is None or new is None or not (old.tags or getattr(old, "pictures", ())):
            return ""
        if isinstance(old.tags, ID3):
            if new.tags is None:
                new.add_tags()
            new.tags.clear()
            for frame in old.tags.values():
                new.tags.add(frame)
            # Version 2.3 stays 2.3: older players read no other.
            new.save(v2_version=3 if old.tags.version[:2] == (2, 3) else 4)
        else:
            if new.tags is None:
                new.add_tags()
            new.tags.clear()
            new.tags.extend(list(old.tags or ()))
            for picture in getattr(old, "pictures", ()):
                new.add_picture(picture)
            new.save()
    except mutagen.MutagenError as error:
        return f"tags not kept: {error}"
    return ""


def _append_chunks(source: Path, target: Path) -> str:
    """Appends the chunks of a RIFF, RF64 or FORM file that a new one of the same family lacks; gives a remark."""
    with source.open("rb") as old, target.open("r+b") as new:
        order, start = _ORDERS.get(old.read(12)[:4]), new.read(16)
        if order is None or _ORDERS.get(start[:4]) != order:
            return ""
        chunks, too_large = _read_chunks(old, order)
        end = new.seek(0, io.SEEK_END)
        size = end + end % 2 + len(chunks) - 8
        is_rf64 = start[:4] == b"RF64" and start[12:] == b"ds64"
        if chunks and (size <= 0xFFFF_FFFF or is_rf64):
            new.write(b"\0" * (end % 2) + chunks)
            # RF64 has its size, in 64 bits, first in the chunk ds64.
            new.seek(20 if is_rf64 else 4)
            new.write(struct.pack("<Q" if is_rf64 else order + "I", size))
        elif chunks:
            too_large = True
    return "some chunks besides the samples are too large and not kept" if too_large else ""


def _read_chunks(file: BinaryIO, order: str) -> tuple[bytes, bool]:
    """The chunks from here on but for those that a new file has anyway, and whether some are too large to copy."""
    copied, too_large, data_bytes = io.BytesIO(), False, 0
    size = os.fstat(file.fileno()).st_size
    while len(header := file.read(8)) == 8:
        name, length = header[:4], struct.unpack(order + "I", header[4:])[0]
        if name == b"ds64":
            data_bytes = int.from_bytes(file.read(16)[8:], "little")
            file.seek(length + length % 2 - 16, io.SEEK_CUR)
            continue
        if name == b"data" and length == 0xFFFF_FFFF and data_bytes:
            length = data_bytes
        own = name in _OWN_CHUNKS | _FILLERS
        if own or length + copied.tell() > _MOST_BYTES:
            # Rubbish after the samples may look like a chunk that goes on far beyond the file.
            too_large |= not own and file.tell() + length <= size
            file.seek(length + length % 2, io.SEEK_CUR)
            continue
        content = file.read(length)
        file.seek(length % 2, io.SEEK_CUR)
        if len(content) == length:
            copied.write(header + content + b"\0" * (length % 2))
    return copied.getvalue(), too_large
