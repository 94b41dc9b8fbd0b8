"""What a file says about its recording besides the samples: titles, cue points, pictures, broadcast chunks."""

import io
import struct
from pathlib import Path

from saf_jax.audio_blocks import Recording, open_recording

TEXT_FIELDS = (
    "title", "copyright", "software", "artist", "comment", "date", "album", "license", "tracknumber", "genre",
)  # fmt: skip
"""soundfile's text fields."""

# Chunks that describe the stored samples themselves: the new file has its own.
_OWN_CHUNKS = {b"fmt ", b"data", b"fact", b"PEAK", b"ds64", b"levl", b"COMM", b"SSND", b"FVER"}
_FILLERS = {b"JUNK", b"junk", b"PAD ", b"FLLR"}
_RIFF, _AIFF = {"WAV", "WAVEX"}, {"AIFF"}
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
    _append_chunks(source, target)
    return ""


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


def _append_chunks(source: Path, target: Path) -> None:
    """Appends the chunks of a RIFF or FORM file that a new one of the same kind lacks."""
    with source.open("rb") as old, target.open("r+b") as new:
        kind = old.read(12)[:4]
        if new.read(12)[:4] != kind or kind not in (b"RIFF", b"RIFX", b"FORM"):
            return
        order = "<" if kind == b"RIFF" else ">"
        copied = io.BytesIO()
        while len(header := old.read(8)) == 8:
            length = struct.unpack(order + "I", header[4:])[0]
            if header[:4] in _OWN_CHUNKS | _FILLERS or length + copied.tell() > _MOST_BYTES:
                old.seek(length + length % 2, io.SEEK_CUR)
                continue
            content = old.read(length)
            old.seek(length % 2, io.SEEK_CUR)
            if len(content) == length:
                copied.write(header + content + b"\0" * (length % 2))
        end = new.seek(0, io.SEEK_END)
        size = end + end % 2 + copied.tell() - 8
        if copied.tell() and size <= 0xFFFF_FFFF:
            new.write(b"\0" * (end % 2) + copied.getvalue())
            new.seek(4)
            new.write(struct.pack(order + "I", size))
