import struct
import sys

import mutagen
import numpy as np
import pytest
import soundfile
from mutagen.flac import Picture
from mutagen.id3 import APIC, COMM, TIT2, TXXX
from networks import tone_in_noise

from saf_jax import tags
from saf_jax.audio_blocks import Recording
from saf_jax.tags import TEXT_FIELDS, copy_tags, read_texts

SAMPLES = tone_in_noise(9000)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))


def container(path):
    return soundfile.info(path).format


def copy(source, target):
    """A file of the same length that takes over the tags, as the command makes it."""
    texts = read_texts(Recording(source, str(source)), container(source), container_of(target))
    with soundfile.SoundFile(target, "w", 16000, 1) as file:
        for name, text in texts.items():
            setattr(file, name, text)
        file.write(SAMPLES / 2)
    remark = copy_tags(source, target, container(source), container(target))
    assert len(soundfile.read(target)[0]) == len(SAMPLES)
    return remark


def container_of(path):
    return {".mp3": "MP3", ".ogg": "OGG", ".aiff": "AIFF"}.get(path.suffix, path.suffix[1:].upper())


def chunk(name, content, order="<"):
    return name + struct.pack(order + "I", len(content)) + content + b"\0" * (len(content) % 2)


@pytest.mark.parametrize("suffix", [".flac", ".ogg"])
def test_all_comments_of_flac_and_ogg_are_kept(tmp_path, suffix):
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    soundfile.write(source, SAMPLES, 16000)
    file = mutagen.File(source)
    file["title"] = ["Größe 音"]
    file["artist"] = ["one", "two"]
    file["my own field"] = ["x" * 5000]
    file["software"] = ["recorder"]
    file.save()
    assert copy(source, target) == ""
    assert sorted(mutagen.File(target).tags) == sorted(mutagen.File(source).tags)


def test_pictures_of_flac_are_kept(tmp_path):
    soundfile.write(tmp_path / "a.flac", SAMPLES, 16000)
    file = mutagen.File(tmp_path / "a.flac")
    picture = Picture()
    picture.data, picture.mime, picture.type = PNG, "image/png", 3
    file.add_picture(picture)
    file.save()
    assert copy(tmp_path / "a.flac", tmp_path / "b.flac") == ""
    assert [item.data for item in mutagen.File(tmp_path / "b.flac").pictures] == [PNG]


@pytest.mark.parametrize("version", [3, 4])
def test_frames_of_mp3_are_kept_in_their_version(tmp_path, version):
    source, target = tmp_path / "a.mp3", tmp_path / "b.mp3"
    soundfile.write(source, SAMPLES, 16000)
    file = mutagen.File(source)
    file.add_tags() if file.tags is None else file.tags.clear()
    for frame in (
        TIT2(encoding=1, text=["Größe 音"]),
        COMM(encoding=1, lang="deu", desc="", text=["ü"]),
        TXXX(encoding=1, desc="mine", text=["1"]),
        APIC(encoding=0, mime="image/png", type=3, desc="", data=PNG),
    ):
        file.tags.add(frame)
    file.save(v2_version=version)
    assert copy(source, target) == ""
    kept = mutagen.File(target).tags
    assert kept.version == (2, version, 0)
    assert {key: frame.pprint() for key, frame in kept.items()} == {
        key: frame.pprint() for key, frame in mutagen.File(source).tags.items()
    }
    assert kept.getall("APIC")[0].data == PNG


@pytest.mark.parametrize(("suffix", "order"), [(".wav", "<"), (".aiff", ">")])
def test_chunks_of_wav_and_aiff_are_kept_byte_for_byte(tmp_path, suffix, order):
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    soundfile.write(source, SAMPLES, 16000)
    extra = [
        chunk(b"bext", bytes(range(256)) * 3, order),
        chunk(b"LIST", b"INFOINAM" + struct.pack("<I", 6) + b"title\0", order),
        chunk(b"iXML", b"<odd/>!", order),
    ]
    content = source.read_bytes() + b"".join(extra) + chunk(b"JUNK", bytes(100), order)
    source.write_bytes(content[:4] + struct.pack(order + "I", len(content) - 8) + content[8:])
    before = soundfile.read(source)[0]
    assert copy(source, target) == ""
    written = target.read_bytes()
    assert all(part in written for part in extra)
    assert b"JUNK" + struct.pack(order + "I", 100) not in written
    assert struct.unpack(order + "I", written[4:8])[0] == len(written) - 8
    np.testing.assert_allclose(soundfile.read(target)[0], before / 2, atol=1e-4)
    if suffix == ".wav":
        assert soundfile.SoundFile(target).title == "title"


@pytest.mark.parametrize("formats", [("RF64", "RF64"), ("RF64", "WAV"), ("WAV", "RF64")], ids="->".join)
def test_chunks_go_into_and_out_of_rf64(tmp_path, formats):
    source, target = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(source, SAMPLES, 16000, format=formats[0])
    soundfile.write(target, SAMPLES / 2, 16000, format=formats[1])
    # The odd one last: libsndfile reads no further behind such a chunk of RF64.
    extra = chunk(b"LIST", b"INFOINAM" + struct.pack("<I", 6) + b"title\0") + chunk(b"bext", b"scene 7".ljust(603))
    source.write_bytes(source.read_bytes() + extra)
    assert copy_tags(source, target, *formats) == ""
    written = target.read_bytes()
    assert written.endswith(extra)
    place, word = (20, "<Q") if formats[1] == "RF64" else (4, "<I")
    assert struct.unpack_from(word, written, place) == (len(written) - 8,)
    with soundfile.SoundFile(target) as file:
        assert (file.title, file.frames, file.format) == ("title", len(SAMPLES), formats[1])


def test_chunks_that_are_too_large_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tags, "_MOST_BYTES", 100)
    soundfile.write(tmp_path / "a.wav", SAMPLES, 16000)
    soundfile.write(tmp_path / "b.wav", SAMPLES, 16000)
    with (tmp_path / "a.wav").open("ab") as file:
        file.write(chunk(b"iXML", bytes(200)) + chunk(b"note", b"short"))
    assert "too large and not kept" in copy_tags(tmp_path / "a.wav", tmp_path / "b.wav", "WAV", "WAV")
    assert (tmp_path / "b.wav").read_bytes().endswith(chunk(b"note", b"short"))


@pytest.mark.parametrize("suffixes", [(".wav", ".flac"), (".flac", ".wav"), (".ogg", ".flac"), (".caf", ".caf")])
def test_text_fields_cross_from_format_to_format(tmp_path, suffixes):
    source, target = tmp_path / f"a{suffixes[0]}", tmp_path / f"b{suffixes[1]}"
    with soundfile.SoundFile(source, "w", 16000, 1) as file:
        file.title, file.artist, file.comment = "T", "A", "C"
        file.write(SAMPLES)
    assert copy(source, target) == ""
    with soundfile.SoundFile(target) as file:
        assert (file.title, file.artist, file.comment) == ("T", "A", "C")


def test_without_mutagen_the_text_fields_are_kept(tmp_path, monkeypatch):
    source = tmp_path / "a.flac"
    with soundfile.SoundFile(source, "w", 16000, 1) as file:
        file.title = "T"
        file.write(SAMPLES)
    monkeypatch.setitem(sys.modules, "mutagen", None)
    assert copy(source, tmp_path / "b.flac") == ""
    assert soundfile.SoundFile(tmp_path / "b.flac").title == "T"


def test_damaged_tags_are_told_and_harm_nothing(tmp_path):
    source, target = tmp_path / "a.flac", tmp_path / "b.flac"
    soundfile.write(source, SAMPLES, 16000)
    soundfile.write(target, SAMPLES, 16000)
    source.write_bytes(b"fLaC\x84\x00\x00\x05hello" + source.read_bytes()[42:])
    before = target.read_bytes()
    assert copy_tags(source, target, "FLAC", "FLAC").startswith("tags not kept: ")
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", TEXT_FIELDS)
def test_the_fields_are_soundfiles(name):
    assert hasattr(soundfile.SoundFile, name) or name in soundfile._str_types
