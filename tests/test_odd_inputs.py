"""Odd recordings, each through the command: a right output, or one clear line and no output."""

import os
import struct

import networks
import numpy as np
import pytest
import soundfile
from networks import tone_in_noise

from saf_jax.cli import main
from saf_jax.config import STFTConfig
from saf_jax.pretrained import save_weights

SAMPLES = tone_in_noise(9000)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "least.safetensors"
    config = networks.least(stft=STFTConfig())
    save_weights(path, config, networks.net_variables(config))
    return path


def plain(name, samples=SAMPLES, rate=16000, **kwargs):
    """A maker of an ordinary file: called with its folder, it gives the path."""

    def make(folder):
        soundfile.write(folder / name, samples, rate, **kwargs)
        return folder / name

    return make


def content(name, given):
    def make(folder):
        (folder / name).write_bytes(given)
        return folder / name

    return make


def changed(make, change):
    """The file of another maker with its bytes changed."""

    def changer(folder):
        path = make(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return changer


def directory(folder):
    (folder / "a.wav").mkdir()
    return folder / "a.wav"


def unreadable(folder):
    path = plain("a.wav")(folder)
    path.chmod(0)
    return path


def broken_link(folder):
    (folder / "a.wav").symlink_to("nowhere.wav")
    return folder / "a.wav"


def with_length(number):
    return lambda whole: whole[:40] + struct.pack("<I", number) + whole[44:]


def channels(count):
    return np.stack([tone_in_noise(9000, i) for i in range(count)], axis=1)


GOOD = {
    "one sample": plain("a.wav", np.array([0.5])),
    "two samples": plain("a.wav", np.array([0.5, -0.5])),
    "one sample at 192 kHz": plain("a.wav", np.array([0.5]), 192000),
    "silence": plain("a.wav", np.zeros(5000)),
    "a single click": plain("a.wav", np.where(np.arange(9000) == 4000, 0.9, 0.0)),
    "full scale square": plain("a.wav", np.where(np.arange(9000) % 100 < 50, 1.0, -1.0)),
    "constant": plain("a.wav", np.full(9000, 0.25)),
    "almost nothing": plain("a.wav", 1e-7 * SAMPLES, subtype="FLOAT"),
    "the smallest floats": plain("a.wav", np.full(9000, 1e-44, np.float32), subtype="FLOAT"),
    "far beyond full scale": plain("a.wav", 1000 * SAMPLES, subtype="FLOAT"),
    "1 kHz rate": plain("a.wav", rate=1000),
    "8 kHz rate": plain("a.wav", rate=8000),
    "11025 Hz": plain("a.wav", rate=11025),
    "44.1 kHz": plain("a.wav", rate=44100),
    "a prime rate": plain("a.wav", rate=15991),
    "384 kHz": plain("a.wav", rate=384000),
    "8 bit": plain("a.wav", subtype="PCM_U8"),
    "24 bit": plain("a.wav", subtype="PCM_24"),
    "32 bit": plain("a.wav", subtype="PCM_32"),
    "double": plain("a.wav", subtype="DOUBLE"),
    "mu-law": plain("a.wav", subtype="ULAW"),
    "GSM": plain("a.wav", rate=8000, subtype="GSM610"),
    "big-endian wav": plain("a.wav", endian="BIG"),
    "WAVEX of five channels": plain("a.wav", channels(5), format="WAVEX"),
    "RF64": plain("a.wav", format="RF64"),
    "wave": plain("a.wave", format="WAV"),
    "broadcast wave": plain("a.bwf", format="WAV"),
    "Sun": plain("a.snd", format="AU"),
    "NIST Sphere": plain("a.sph", format="NIST"),
    "IRCAM": plain("a.sf", format="IRCAM"),
    "Amiga": plain("a.iff", format="SVX"),
    "Matlab": plain("a.mat", format="MAT5"),
    "AIFF": plain("a.aiff"),
    "CAF": plain("a.caf"),
    "8 bit flac": plain("a.flac", subtype="PCM_S8"),
    "ogg": plain("a.ogg"),
    "opus": plain("a.opus", rate=48000, format="OGG", subtype="OPUS"),
    "mp3": plain("a.mp3", rate=44100),
    "capital ending": plain("A.WAV", format="WAV"),
    "name with spaces and signs": plain("a b — 'ü' #1%20 [x].wav"),
    "name that starts with a dash": plain("-a.wav"),
    "mono as stereo": plain("a.wav", np.stack([SAMPLES, SAMPLES], axis=1)),
    "one silent channel": plain("a.wav", np.stack([SAMPLES, 0 * SAMPLES], axis=1)),
    "opposite channels": plain("a.wav", np.stack([SAMPLES, -SAMPLES], axis=1)),
    "length left open by a pipe": changed(plain("a.wav"), with_length(0xFFFF_FFFF)),
    "extra chunk of odd length": changed(plain("a.wav"), lambda whole: whole + b"note\x05\0\0\0hello\0"),
    "rubbish after the samples": changed(plain("a.wav"), lambda whole: whole + b"\x01\x02\x03" * 100),
}

BAD = {
    "empty file": (content("a.wav", b""), "the file is empty"),
    "text": (content("a.wav", b"these are words\n" * 99), "cannot be read as audio"),
    "text as mp3": (content("a.mp3", b"these are words\n" * 99), "cannot be read as audio"),
    "zeros": (content("a.flac", bytes(5000)), "cannot be read as audio"),
    "header alone": (plain("a.wav", np.zeros(0)), "holds no samples"),
    "part of a header": (changed(plain("a.wav"), lambda whole: whole[:30]), "cannot be read as audio"),
    "cut wav": (changed(plain("a.wav"), lambda whole: whole[:9000]), "truncated"),
    "cut flac": (changed(plain("a.flac"), lambda whole: whole[:-3000]), ""),
    "flac of unknown length": (
        changed(plain("a.flac"), lambda whole: whole[:21] + bytes([whole[21] & 0xF0]) + bytes(4) + whole[26:]),
        "does not say how long it is",
    ),
    "nan": (plain("a.wav", np.where(np.arange(999) == 5, np.nan, 0.1), subtype="FLOAT"), "1 samples are NaN"),
    "infinite": (plain("a.wav", np.where(np.arange(999) < 7, np.inf, 0.1), subtype="DOUBLE"), "7 samples are NaN"),
    "a folder without audio": (directory, "holds no audio file"),
    "a link that leads nowhere": (broken_link, "no such file"),
    "unreadable": (unreadable, "permission denied"),
    "missing": (lambda folder: folder / "a.wav", "no such file"),
}


def run(path, folder, weights, capsys, monkeypatch):
    monkeypatch.chdir(path.parent)
    # As a shell gives it to the command; a name that starts with a dash needs its folder before it.
    name = f"./{path.name}" if path.name.startswith("-") else path.name
    status = main(["enhance", name, "-o", str(folder), "--weights", str(weights)])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("kind", GOOD)
def test_a_right_output(kind, tmp_path, weights, capsys, monkeypatch):
    path = GOOD[kind](tmp_path)
    status, out, err = run(path, tmp_path / "out", weights, capsys, monkeypatch)
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert out.startswith(str(tmp_path / "out" / path.name))
    given, written = soundfile.info(path), soundfile.info(tmp_path / "out" / path.name)
    for name in ("samplerate", "channels", "format", "subtype", "endian", "frames"):
        assert getattr(written, name) == getattr(given, name), name
    with soundfile.SoundFile(path) as file:
        before = file.read(file.frames, always_2d=True)
    with soundfile.SoundFile(tmp_path / "out" / path.name) as file:
        after = file.read(file.frames, always_2d=True)
    assert np.isfinite(after).all()
    assert np.abs(after).max() <= 2 * max(1e-6, np.abs(before).max())
    if np.abs(before).max() > 1e-4:
        assert after.any()


@pytest.mark.parametrize("kind", BAD)
def test_one_clear_line(kind, tmp_path, weights, capsys, monkeypatch):
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    make, message = BAD[kind]
    path = make(tmp_path)
    status, out, err = run(path, tmp_path / "out", weights, capsys, monkeypatch)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"error: {path.name}")
    assert message in err
    assert not (tmp_path / "out" / path.name).exists()
