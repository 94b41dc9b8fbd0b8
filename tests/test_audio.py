import os
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tone_in_noise

from saf_jax import audio
from saf_jax.audio import Audio
from saf_jax.errors import UserError

SAMPLES = tone_in_noise(4000)


def write(path, samples=SAMPLES, rate=16000, **kwargs):
    soundfile.write(path, samples, rate, **kwargs)
    return path


def cut(path, part=0.6):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    return path


def bad_file(kind, folder):
    """A file that cannot be used, of the kind that its name says."""
    path = folder / "bad.wav"
    if kind == "missing":
        pass
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "not audio":
        path.write_text("these are words\n" * 100)
    elif kind == "without samples":
        write(path, np.zeros(0))
    elif kind == "header only":
        write(path)
        path.write_bytes(path.read_bytes()[:30])
    elif kind == "cut wav":
        cut(write(path))
    elif kind == "cut by one byte":
        cut(write(path), 1 - 1e-6)
    elif kind == "cut float wav":
        cut(write(path, subtype="FLOAT"))
    elif kind == "cut flac":
        path = cut(write(folder / "bad.flac"))
    elif kind == "cut aiff":
        path = cut(write(folder / "bad.aiff"))
    elif kind == "damaged flac":
        path = write(folder / "bad.flac", tone_in_noise(40000))
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2 : len(whole) // 2 + 2000] = bytes(2000)
        path.write_bytes(whole)
    elif kind == "nan":
        write(path, np.where(np.arange(100) == 50, np.nan, 0.1), subtype="FLOAT")
    elif kind == "infinite":
        write(path, np.where(np.arange(100) == 50, np.inf, 0.1), subtype="DOUBLE")
    return path


BAD = {
    "missing": "no such file: check the path",
    "a folder": "is a folder where an audio file is needed",
    "a pipe": "is a pipe, not a file: send it to stdin, which saf-jax enhance knows as -",
    "empty": "the file is empty (0 bytes)",
    "not audio": "cannot be read as audio",
    "without samples": "holds no samples",
    "header only": "",
    "cut wav": "truncated: the header promises more samples",
    "cut by one byte": "truncated: the header promises more samples",
    "cut float wav": "truncated: the header promises more samples",
    "cut flac": "",
    "cut aiff": "truncated",
    "damaged flac": "",
    "nan": "1 samples are NaN or infinite",
    "infinite": "1 samples are NaN or infinite",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_that_names_it(kind, tmp_path):
    path = bad_file(kind, tmp_path)
    for read in (audio.read, lambda path: audio.read_mono(path, 8000)):
        with pytest.raises(UserError) as error:
            read(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ")
        assert BAD[kind] in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("suffix", "subtype", "step"),
    [
        (".wav", "PCM_U8", 2**-7),
        (".wav", "PCM_16", 2**-15),
        (".wav", "PCM_24", 2**-23),
        (".wav", "PCM_32", 2**-23),
        (".wav", "FLOAT", 0),
        (".wav", "DOUBLE", 0),
        (".flac", "PCM_S8", 2**-7),
        (".flac", "PCM_16", 2**-15),
        (".flac", "PCM_24", 2**-23),
        (".aiff", "PCM_16", 2**-15),
        (".au", "PCM_16", 2**-15),
        (".w64", "PCM_16", 2**-15),
        (".caf", "PCM_16", 2**-15),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_formats_come_back_as_they_were(tmp_path, suffix, subtype, step, channels):
    samples = np.stack([SAMPLES, -0.5 * SAMPLES], axis=1)[:, :channels]
    path = tmp_path / f"a{suffix}"
    assert audio.write(path, Audio(samples, 22050, subtype=subtype)) == 0
    back = audio.read(path)
    assert back.samples.dtype == np.float32
    assert back.samples.shape == samples.shape
    assert (back.sample_rate_hz, back.subtype) == (22050, subtype)
    np.testing.assert_allclose(back.samples, samples, atol=1.1 * step)
    again = tmp_path / f"b{suffix}"
    audio.write(again, back)
    assert soundfile.info(again).subtype == subtype


@pytest.mark.parametrize("suffix", [".ogg", ".mp3", ".opus"])
def test_lossy_formats_can_be_read_and_written(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    audio.write(path, Audio(np.tile(SAMPLES, 4)[:, None], 16000))
    back = audio.read(path)
    assert back.sample_rate_hz == 16000
    assert back.samples.shape[1] == 1
    assert np.isfinite(back.samples).all()
    assert abs(len(back.samples) - 16000) < 3000


def test_a_stream_written_through_a_pipe_is_no_truncated_file(tmp_path):
    path = write(tmp_path / "a.wav")
    whole = bytearray(path.read_bytes())
    assert whole[36:40] == b"data"
    whole[40:44] = struct.pack("<I", 0xFFFFFFFF)
    whole[4:8] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(whole)
    assert len(audio.read(path).samples) == len(SAMPLES)


def test_chunks_before_and_after_the_samples_are_passed_over(tmp_path):
    path = write(tmp_path / "a.wav")
    whole = path.read_bytes()
    odd = b"note" + struct.pack("<I", 5) + b"hello\0"
    path.write_bytes(whole[:36] + odd + whole[36:] + odd)
    assert len(audio.read(path).samples) == len(SAMPLES)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_the_shortest_files(tmp_path, samples):
    path = write(tmp_path / "a.wav", np.full(samples, 0.5))
    assert audio.read(path).samples.shape == (samples, 1)


def test_silence_is_no_error(tmp_path):
    assert not audio.read(write(tmp_path / "a.wav", np.zeros(100))).samples.any()


def test_a_part_of_a_file(tmp_path):
    path = write(tmp_path / "a.wav", SAMPLES, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read(path, start=1000, frames=500).samples[:, 0], SAMPLES[1000:1500])
    np.testing.assert_array_equal(audio.read(path, start=3900).samples[:, 0], SAMPLES[3900:])
    np.testing.assert_array_equal(audio.read(path, start=3900, frames=500).samples[:, 0], SAMPLES[3900:])


def test_mono_is_the_mean_of_the_channels_at_the_wanted_rate(tmp_path):
    time = np.arange(48000) / 48000
    tone = np.sin(2 * np.pi * 440 * time)
    path = write(tmp_path / "a.wav", np.stack([0.5 * tone, 0.1 * tone], axis=1), 48000, subtype="FLOAT")
    mono = audio.read_mono(path, 16000)
    assert mono.dtype == np.float32
    assert mono.shape == (16000,)
    inner = slice(500, -500)
    wanted = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(mono[inner], wanted[inner], atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 3000), from_hz=st.sampled_from([8000, 16000, 22050, 44100, 48000]))
def test_resampling_keeps_duration_and_channels(length, from_hz):
    samples = np.zeros((length, 2), np.float32)
    out = audio.resample(samples, from_hz, 16000)
    assert out.dtype == np.float32
    assert out.shape[1] == 2
    assert abs(len(out) - length * 16000 / from_hz) <= 1
    assert not out.any()


def test_samples_beyond_full_scale_are_counted_and_clipped_by_integers_only(tmp_path):
    loud = np.array([[0.5], [1.5], [-2.0], [1.0]], np.float32)
    assert audio.write(tmp_path / "a.wav", Audio(loud, 16000)) == 2
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav").samples[:, 0], [0.5, 1, -1, 1], atol=1e-4)
    assert audio.write(tmp_path / "b.wav", Audio(loud, 16000, subtype="FLOAT")) == 0
    np.testing.assert_array_equal(audio.read(tmp_path / "b.wav").samples, loud)


@pytest.mark.parametrize("name", ["a.txt", "a", "a.xyz"])
def test_an_ending_that_is_no_audio_format_is_named(tmp_path, name):
    with pytest.raises(UserError, match=r"is no audio format that can be written: use \.wav or \.flac"):
        audio.write(tmp_path / name, Audio(SAMPLES, 16000))
    assert list(tmp_path.iterdir()) == []


def test_what_a_format_cannot_hold_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"a\.flac: cannot be written"):
        audio.write(tmp_path / "a.flac", Audio(np.zeros((10, 20), np.float32), 16000))
    assert list(tmp_path.iterdir()) == []


def test_listing_finds_audio_in_all_folders_and_passes_over_the_rest(tmp_path):
    for name in ("b.wav", "sub/a.FLAC", "notes.txt", ".hidden.wav", "sub/.c.partial.wav", "sub/.Trash/deep/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    assert audio.list_audio(tmp_path) == [tmp_path / "b.wav", tmp_path / "sub/a.FLAC"]


@pytest.mark.parametrize("name", ["a.bwf", "a.wave", "a.snd", "a.SPH", "a.nist"])
def test_listing_takes_the_older_endings_that_can_be_read(tmp_path, name):
    audio.write(tmp_path / name, Audio(SAMPLES[:, None], 16000))
    assert audio.list_audio(tmp_path) == [tmp_path / name]
    assert len(audio.read(tmp_path / name).samples) == len(SAMPLES)


def test_listing_follows_links_to_folders_but_not_in_circles(tmp_path):
    for name in ("set/a.wav", "elsewhere/sub/b.wav", ".store/c.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    root = tmp_path / "set"
    for name, target in (("more", "../elsewhere"), ("stored", "../.store"), ("self", "self"), ("none", "nowhere")):
        (root / name).symlink_to(target)
    for place in (root, tmp_path / "elsewhere" / "sub"):
        (place / "back").symlink_to(root)
    assert audio.list_audio(root) == [root / "a.wav", root / "more/sub/b.wav", root / "stored/c.wav"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "no such folder"), ("file.wav", "is a file where a folder"), ("empty", "holds no audio file")],
)
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, name, message):
    (tmp_path / "file.wav").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        audio.list_audio(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: {message}")


def make_pairs(folder, clean, noisy):
    for kind, names in (("clean", clean), ("noisy", noisy)):
        for name in names:
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / kind / name).touch()
    return folder / "clean", folder / "noisy"


def test_pairs_go_by_relative_names_without_ending(tmp_path):
    clean, noisy = make_pairs(tmp_path, ["b.wav", "x/a.wav"], ["x/a.flac", "b.wav"])
    assert audio.list_pairs(clean, noisy) == [
        audio.Pair("b", clean / "b.wav", noisy / "b.wav"),
        audio.Pair("x/a", clean / "x/a.wav", noisy / "x/a.flac"),
    ]


@pytest.mark.parametrize(
    ("clean", "noisy", "message"),
    [
        (["a.wav", "b.wav"], ["a.wav"], "clean/b.wav: has no partner of that name in .*noisy: add it"),
        (["a.wav"], ["a.wav", "b.wav", "c.wav"], r"noisy/b.wav: has no partner .*clean \(2 such files\)"),
    ],
)
def test_a_file_without_its_partner_is_named(tmp_path, clean, noisy, message):
    with pytest.raises(UserError, match=message):
        audio.list_pairs(*make_pairs(tmp_path, clean, noisy))


def test_two_files_of_one_name_are_not_silently_one_pair(tmp_path):
    clean, noisy = make_pairs(tmp_path, ["a.wav", "a.flac"], ["a.wav"])
    with pytest.raises(UserError, match=r"a\.wav and .*a\.flac: have the same name"):
        audio.list_pairs(clean, noisy)


def test_names_need_not_be_utf_8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    assert audio.write(path, Audio(SAMPLES, 16000)) == 0
    assert len(audio.read(path).samples) == len(SAMPLES)


def test_real_pairs(audio_root):
    folder = audio_root / "voicebank_demand" / "test"
    pairs = audio.list_pairs(folder / "clean", folder / "noisy")
    assert len(pairs) == 59
    for pair in pairs[:3]:
        clean, noisy = audio.read_mono(pair.clean, 16000), audio.read_mono(pair.noisy, 16000)
        assert len(clean) == len(noisy) > 8000
        assert 0.01 < np.abs(noisy).max() <= 1
