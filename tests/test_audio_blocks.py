import subprocess
import sys

import numpy as np
import pytest
import soundfile
from networks import tone_in_noise

from saf_jax import audio
from saf_jax.audio_blocks import (
    PIECE_SAMPLES,
    AudioFormat,
    Recording,
    declared_seconds,
    output_format,
    read_format,
    read_pieces,
    writing,
)
from saf_jax.errors import UserError

SAMPLES = np.stack([tone_in_noise(150000, 1), tone_in_noise(150000, 2)], axis=1)


def recording(path, **kwargs):
    return Recording(path, str(path), **kwargs)


def write_file(path, file_format, samples=SAMPLES, texts=None):
    with writing(path, file_format, texts or {}, lambda temporary: None) as writer:
        for piece in np.array_split(samples, 3):
            writer.write(piece)
    return writer


def read_all(path, **kwargs):
    return np.concatenate(list(read_pieces(recording(path, **kwargs))))


@pytest.mark.parametrize(
    ("name", "container", "subtype"),
    [
        ("a.wav", "WAV", "PCM_U8"),
        ("a.wav", "WAV", "PCM_16"),
        ("a.wav", "WAVEX", "PCM_24"),
        ("a.wav", "RF64", "PCM_32"),
        ("a.wav", "WAV", "FLOAT"),
        ("a.wav", "WAVEX", "DOUBLE"),
        ("a.wav", "WAV", "ULAW"),
        ("a.flac", "FLAC", "PCM_S8"),
        ("a.flac", "FLAC", "PCM_24"),
        ("a.aiff", "AIFF", "PCM_24"),
        ("a.caf", "CAF", "PCM_16"),
        ("a.w64", "W64", "FLOAT"),
    ],
)
def test_what_is_read_and_written_again_is_the_same(tmp_path, name, container, subtype):
    """To the last bit of all formats but 32 bit integers, of which float32 holds 24."""
    path = tmp_path / name
    soundfile.write(path, SAMPLES, 44100, format=container, subtype=subtype)
    given = read_format(recording(path))
    assert given == AudioFormat(44100, 2, container, subtype, given.endian)
    pieces = list(read_pieces(recording(path)))
    assert [len(piece) for piece in pieces] == [PIECE_SAMPLES, PIECE_SAMPLES, 150000 - 2 * PIECE_SAMPLES]
    copy = tmp_path / "copy" / name
    write_file(copy, output_format(copy, given, 150000), np.concatenate(pieces))
    assert read_format(recording(copy)) == given
    np.testing.assert_array_equal(read_all(copy), audio.read(path).samples)
    whole, again = (soundfile.read(file, dtype="int32")[0].astype(int) for file in (path, copy))
    assert np.abs(whole - again).max() <= (0 if subtype != "PCM_32" else 2**8)


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_samples_without_header(tmp_path, subtype, endian):
    path = tmp_path / "a.raw"
    soundfile.write(path, SAMPLES, 8000, format="RAW", subtype=subtype, endian=endian)
    raw = AudioFormat(8000, 2, "RAW", subtype, endian)
    copy = tmp_path / "copy.raw"
    assert output_format(copy, raw, 150000) == raw
    write_file(copy, raw, read_all(path, raw=raw))
    assert copy.read_bytes() == path.read_bytes()
    assert declared_seconds(recording(path, raw=raw)) == 150000 / 8000


@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM"])
def test_codecs_that_cannot_be_told_to_seek(tmp_path, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, SAMPLES[:20000, 0], 8000, subtype=subtype)
    read = read_all(path)
    assert 20000 <= len(read) < 21500
    np.testing.assert_array_equal(read, audio.read(path).samples)


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3", "a.opus"])
def test_lossy_formats_keep_length_and_place(tmp_path, name):
    given = AudioFormat(
        48000, 2, "MP3" if name == "a.mp3" else "OGG", "MPEG_LAYER_III" if name == "a.mp3" else "VORBIS"
    )
    path = tmp_path / name
    write_file(path, output_format(path, given, 150000))
    read = read_all(path)
    assert read.shape == SAMPLES.shape
    lags = np.correlate(read[3000:5100, 0], SAMPLES[3050:5050, 0], "valid")
    assert np.argmax(lags) == 50


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("a.flac", AudioFormat(16000, 1, "WAV", "PCM_24"), ("FLAC", "PCM_24")),
        ("a.flac", AudioFormat(16000, 1, "WAV", "FLOAT"), ("FLAC", "PCM_16")),
        ("a.wav", AudioFormat(16000, 1, "OGG", "VORBIS"), ("WAV", "PCM_16")),
        ("a.wav", AudioFormat(16000, 1, "RAW", "PCM_16", "LITTLE"), ("WAV", "PCM_16")),
        ("a.wav", AudioFormat(16000, 1, "MP3", "MPEG_LAYER_III"), ("WAV", "PCM_16")),
        ("a.mp3", AudioFormat(16000, 1, "MP3", "MPEG_LAYER_II"), ("MP3", "MPEG_LAYER_III")),
        ("a.opus", AudioFormat(16000, 1, "OGG", "VORBIS"), ("OGG", "OPUS")),
        ("a.aif", AudioFormat(16000, 1, "AIFF", "PCM_16", "LITTLE"), ("AIFF", "PCM_16")),
    ],
)
def test_another_ending_is_another_format(tmp_path, name, given, wanted):
    written = output_format(tmp_path / name, given, 10)
    assert (written.container, written.subtype) == wanted
    write_file(tmp_path / name, written, SAMPLES[:9600, :1])
    assert len(read_all(tmp_path / name)) == 9600


@pytest.mark.parametrize("name", ["a.w64", "a.au"])
def test_a_format_without_texts_is_written_without_them(tmp_path, name):
    given = output_format(tmp_path / name, AudioFormat(16000, 2), 150000)
    assert write_file(tmp_path / name, given, texts={"title": "T", "artist": "A"}).lost_texts == ["title", "artist"]
    assert len(read_all(tmp_path / name)) == 150000


def test_wav_ends_at_4_gb_and_rf64_begins(tmp_path):
    for given, samples, wanted in [
        (AudioFormat(48000, 2), 1_073_000_000, "WAV"),
        (AudioFormat(48000, 2), 1_073_741_824, "RF64"),
        (AudioFormat(48000, 2, "WAVEX", "FLOAT"), 537_000_000, "RF64"),
        (AudioFormat(48000, 2, "W64"), 2_000_000_000, "W64"),
    ]:
        name = "a.w64" if wanted == "W64" else "a.wav"
        assert output_format(tmp_path / name, given, samples).container == wanted


def test_a_wav_of_more_than_4_gb_is_read_whole(tmp_path):
    """A sparse file: three hours of silence in eight channels of floats, and a click at the end."""
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", 48000, 8, "FLOAT", format="RF64") as file:
        file.write(np.zeros((1, 8)))
        start = path.stat().st_size
    header = bytearray(path.read_bytes())
    frames = 3 * 3600 * 48000
    place = header.index(b"ds64") + 8
    for offset, number in ((0, start - 8 + 32 * frames), (8, 32 * frames), (16, frames)):
        header[place + offset : place + offset + 8] = number.to_bytes(8, "little")
    with path.open("wb") as file:
        file.write(header[: header.index(b"data") + 8])
        data = file.tell()
        file.truncate(data + 32 * frames)
        file.seek(data + 32 * frames - 32)
        file.write(np.full(8, 0.25, "<f4").tobytes())
    assert path.stat().st_size > 4 << 30
    assert declared_seconds(recording(path)) == pytest.approx(3 * 3600)
    with soundfile.SoundFile(path) as file:
        file.seek(frames - 1)
        np.testing.assert_array_equal(file.read(dtype="float32"), np.full((1, 8), 0.25))


def test_clipping_is_counted_with_its_peak(tmp_path):
    loud = np.array([[0.5], [1.5], [-2.0], [1.0]], np.float32)
    writer = write_file(tmp_path / "a.wav", AudioFormat(16000, 1), loud)
    assert (writer.clipped, writer.peak) == (2, 2.0)
    assert write_file(tmp_path / "b.wav", AudioFormat(16000, 1, "WAV", "FLOAT"), loud).clipped == 0


def test_a_header_from_a_pipe_may_promise_more_than_comes(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, SAMPLES[:1000], 16000)
    for promised in (0x7FFF_FFDB, 0x8000_0000, 0xFFFF_FFFF):
        content = bytearray(path.read_bytes())
        content[40:44] = promised.to_bytes(4, "little")
        path.write_bytes(content)
        assert len(read_all(path, from_pipe=True)) == 1000
    content[40:44] = (0x8000_0000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated"):
        read_all(path)


def test_a_header_that_does_not_know_its_length_is_named(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, SAMPLES[:1000], 16000)
    content = bytearray(path.read_bytes())
    # STREAMINFO's 36 bits of total samples.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    for read in (read_all, audio.read):
        with pytest.raises(UserError, match=r"a\.flac: its header does not say how long it is"):
            read(path)


def test_faults_within_the_block_leave_nothing(tmp_path):
    with (
        pytest.raises(RuntimeError),
        writing(tmp_path / "a.wav", AudioFormat(16000, 2), {}, lambda path: None) as writer,
    ):
        writer.write(SAMPLES)
        raise RuntimeError
    with pytest.raises(UserError, match=r"a\.opus: cannot be written .*rate"):
        write_file(tmp_path / "a.opus", AudioFormat(44100, 2, "OGG", "OPUS"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path, name):
    """A limit on the size of files stands in for the end of the disk."""
    (tmp_path / name).write_text("old")
    code = f"""
import resource
import numpy as np
from saf_jax.audio_blocks import AudioFormat, output_format, writing
from saf_jax.errors import UserError
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
path = Path({str(tmp_path / name)!r})
try:
    with writing(path, output_format(path, AudioFormat(16000, 1), 10), {{}}, lambda path: None) as writer:
        for _ in range(100):
            writer.write(np.random.default_rng(0).uniform(-1, 1, (50000, 1)).astype(np.float32))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith((f"{tmp_path / name}: cannot be written", f"cannot write {tmp_path / name}"))
    assert (tmp_path / name).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("old")
    code = f"""
import numpy as np
from pathlib import Path
from saf_jax.audio_blocks import AudioFormat, writing
path = Path({str(path)!r})
with writing(path, AudioFormat(16000, 1), {{}}, lambda path: None) as writer:
    for number in range(10**9):
        writer.write(np.zeros((1000, 1), np.float32))
        if number == 100:
            print("under way", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "under way\n"
        process.kill()
    assert path.read_text() == "old"
    (partial,) = set(tmp_path.iterdir()) - {path}
    # What is left is hidden from listings and is no obstacle to the next call.
    assert partial.name.startswith(".")
    assert audio.list_audio(tmp_path) == [path]
    write_file(path, AudioFormat(16000, 2))
    assert len(read_all(path)) == 150000
