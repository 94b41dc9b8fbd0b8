"""`saf-jax prepare folder`: what is good is listed, what is not is named in one line."""

import csv
import os
import sys
import zipfile
import zlib

import numpy as np
import pytest
import soundfile
from speechlike import speechlike

from saf_jax import cli
from saf_jax.audio import read
from saf_jax.config import load_config
from saf_jax.data import prepare_command
from saf_jax.data.pipeline import training_batches


def prepare(root, *options):
    return cli.main(["prepare", "folder", "--root", str(root), *map(str, options)])


def rows_of(root, name="manifest.csv"):
    with (root / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def speech(seed=0, seconds=1.5, rate=16000):
    return speechlike(np.random.default_rng(seed), int(seconds * rate), rate)


def patched(path, offset, content):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(bytes(data))


def write_good(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech(zlib.crc32(path.name.encode())), 16000, **options)
    return path


def cut(path, part):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


# Each makes one file in a folder; the text is what the line about it must say.
DAMAGED = {
    "empty": (lambda d: (d / "x.wav").touch(), "the file is empty (0 bytes)"),
    "text": (lambda d: (d / "x.wav").write_text("not audio " * 500), "cannot be read as audio"),
    "random bytes": (
        lambda d: (d / "x.flac").write_bytes(np.random.default_rng(0).bytes(9000)),
        "cannot be read as audio",
    ),
    "zeros": (lambda d: (d / "x.wav").write_bytes(bytes(9000)), "cannot be read as audio"),
    "picture": (lambda d: (d / "x.wav").write_bytes(b"\xff\xd8\xff\xe0" + bytes(900)), "cannot be read as audio"),
    "archive": (lambda d: zipfile.ZipFile(d / "x.wav", "w").close(), "cannot be read as audio"),
    "mp3 of noise": (lambda d: (d / "x.mp3").write_bytes(b"\x00\x01" * 3000), "cannot be read as audio"),
    "header only": (lambda d: soundfile.write(d / "x.wav", np.zeros(0), 16000), "holds no samples"),
    "flac header only": (lambda d: (write_good(d / "x.flac"), os.truncate(d / "x.flac", 86)), ""),
    "half a header": (lambda d: (write_good(d / "x.wav"), cut(d / "x.wav", 0.0005)), "cannot be read as audio"),
    "truncated wav": (lambda d: (write_good(d / "x.wav"), cut(d / "x.wav", 0.6)), "truncated"),
    "truncated flac": (lambda d: (write_good(d / "x.flac"), cut(d / "x.flac", 0.6)), ""),
    "flac with a hole": (lambda d: (write_good(d / "x.flac"), patched(d / "x.flac", 9000, bytes(4000))), ""),
    "zero channels": (
        lambda d: (write_good(d / "x.wav"), patched(d / "x.wav", 22, b"\0\0")),
        "cannot be read as audio",
    ),
    "rate of zero": (lambda d: (write_good(d / "x.wav"), patched(d / "x.wav", 24, b"\0\0\0\0")), ""),
    "unknown codec": (
        lambda d: (write_good(d / "x.wav"), patched(d / "x.wav", 20, b"\x77\x77")),
        "cannot be read as audio",
    ),
    "strange bit depth": (
        lambda d: (write_good(d / "x.wav"), patched(d / "x.wav", 34, b"\x63\0")),
        "cannot be read as audio",
    ),
    "NaN": (lambda d: soundfile.write(d / "x.wav", speech() * np.nan, 16000, subtype="FLOAT"), "are NaN or infinite"),
    "one infinity": (
        lambda d: soundfile.write(
            d / "x.wav", np.where(np.arange(24000) == 9, np.inf, speech()), 16000, subtype="FLOAT"
        ),
        "1 samples are NaN or infinite",
    ),
    "silence": (lambda d: soundfile.write(d / "x.wav", np.zeros(16000), 16000), "is silent"),
    "nearly silence": (lambda d: soundfile.write(d / "x.flac", np.eye(1, 16000)[0] / 32768, 16000), "is silent"),
    "a constant": (lambda d: soundfile.write(d / "x.wav", np.full(16000, 0.4), 16000), "is silent"),
    "too short": (lambda d: soundfile.write(d / "x.wav", speech()[:5000], 16000), "is shorter than 0.5 s"),
    "one sample": (lambda d: soundfile.write(d / "x.wav", np.array([0.5]), 16000), "is shorter than 0.5 s"),
    "clipped": (
        lambda d: soundfile.write(d / "x.wav", np.clip(speech() * 20, -1, 1), 16000),
        "is clipped",
    ),
    "rate for no speech": (lambda d: soundfile.write(d / "x.wav", speech(), 500), "a rate of 500 Hz carries no speech"),
    "same file twice": (
        lambda d: (d / "x.wav").write_bytes((d / "a_good.wav").read_bytes()),
        "holds the same samples as",
    ),
    "same samples in flac": (
        lambda d: soundfile.write(d / "x.flac", soundfile.read(d / "a_good.wav")[0], 16000),
        "holds the same samples as",
    ),
    "a folder": (lambda d: (d / "x.wav").mkdir(), "is no file (a folder, a pipe or a broken link)"),
    "broken link": (
        lambda d: (d / "x.wav").symlink_to(d / "nothing.wav"),
        "is no file (a folder, a pipe or a broken link)",
    ),
    "pipe": (lambda d: os.mkfifo(d / "x.wav"), "is no file (a folder, a pipe or a broken link)"),
    "line break in the name": (lambda d: write_good(d / "x\ny.wav"), "its name holds a line break"),
    "name of other bytes": (
        lambda d: (
            write_good(d / "tmp.wav"),
            os.rename(os.fsencode(d / "tmp.wav"), os.fsencode(d) + b"/x\xff\xfe.wav"),
        ),
        "its name is not valid UTF-8",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_left_out_in_one_line(tmp_path, capsys, case):
    make, message = DAMAGED[case]
    folder = tmp_path / "speech"
    good = write_good(folder / "a_good.wav")
    try:
        make(folder)
    except OSError as error:
        pytest.skip(f"this system does not allow it: {error}")
    assert prepare(tmp_path / "root", "--clean", folder, "--speaker", "none") == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"left out: {folder}/x"), captured.err
    assert message in lines[0]
    # A colon, a reason and a way to mend it: more than a bare name.
    assert len(lines[0].split(": ", 2)[2]) > 15
    assert [row["file"] for row in rows_of(tmp_path / "root")] == [str(good)]
    assert len(rows_of(tmp_path / "root", "left_out.csv")) == 1


def test_enough_kinds_of_damage():
    assert len(DAMAGED) >= 30


# Odd, but good recordings: name, rate, how to write them.
ODD = {
    "eight bit": ("x.wav", 16000, {"subtype": "PCM_U8"}),
    "24 bit": ("x.wav", 48000, {"subtype": "PCM_24"}),
    "float": ("x.wav", 44100, {"subtype": "FLOAT"}),
    "double": ("x.wav", 22050, {"subtype": "DOUBLE"}),
    "mu-law": ("x.wav", 8000, {"subtype": "ULAW"}),
    "extensible": ("x.wav", 16000, {"format": "WAVEX"}),
    "big-endian aiff": ("x.aiff", 32000, {}),
    "au": ("x.au", 16000, {}),
    "ogg vorbis": ("x.ogg", 44100, {}),
    "opus": ("x.opus", 48000, {"format": "OGG", "subtype": "OPUS"}),
    "mp3": ("x.mp3", 44100, {}),
    "96 kHz": ("x.flac", 96000, {}),
    "strange rate": ("x.wav", 11111, {}),
    "upper case": ("x.WAV", 16000, {}),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_file_is_taken_and_trained_on(tmp_path, capsys, case):
    name, rate, options = ODD[case]
    (tmp_path / "speech").mkdir()
    samples = speech(1, 2.0, rate)
    if case != "opus":
        samples = np.stack([samples, 0.5 * samples], 1)
    soundfile.write(tmp_path / "speech" / name, samples, rate, **options)
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / name, np.random.default_rng(0).standard_normal(rate) * 0.1, rate, **options)
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech", "--noise", tmp_path / "noise") == 0
    assert capsys.readouterr().err == ""
    rows = rows_of(tmp_path / "root")
    assert [(row["kind"], row["split"], int(row["sample_rate_hz"])) for row in rows] == [
        ("clean", "train", rate),
        ("noise", "train", rate),
    ]
    assert float(rows[0]["seconds"]) == pytest.approx(2.0, abs=0.06)
    table = tmp_path / "root" / "manifest.csv"
    config = load_config("paper", [f"data.train_clean={table}", f"data.train_noise={table}", "data.crop_seconds=1"])
    batches = training_batches(config)
    batch = next(batches)
    batches.close()
    assert np.isfinite(batch["noisy"]).all() and batch["noisy"].any(axis=1).all()


def test_speakers_and_splits(tmp_path, capsys):
    for speaker in range(20):
        for number in range(2):
            write_good(tmp_path / "speech" / f"p{speaker:03d}_{number}.wav")
    for kind in ("bus", "rain"):
        for number in range(6):
            write_good(tmp_path / "noise" / kind / f"{kind}{number}.wav")
    options = ("--clean", tmp_path / "speech", "--noise", tmp_path / "noise", "--valid", 0.1)
    assert prepare(tmp_path / "root", *options) == 0
    rows = rows_of(tmp_path / "root")
    speakers = {
        split: {r["label"] for r in rows if r["kind"] == "clean" and r["split"] == split}
        for split in ("train", "valid")
    }
    assert len(speakers["train"]) == 18 and len(speakers["valid"]) == 2 and not speakers["train"] & speakers["valid"]
    assert {r["label"] for r in rows if r["kind"] == "noise"} == {"bus", "rain"}
    assert "train clean: 36 recordings, 0.9 minutes, 18 speakers" in capsys.readouterr().out
    # The same files give the same manifest, also in another place.
    (tmp_path / "speech").rename(tmp_path / "moved")
    assert prepare(tmp_path / "root2", "--clean", tmp_path / "moved", *options[2:]) == 0
    splits = [[(r["label"], r["split"]) for r in rows_of(tmp_path / root)] for root in ("root", "root2")]
    assert splits[0] == splits[1]


def test_splits_in_folders_are_kept_and_shared_speakers_refused(tmp_path, capsys):
    for place in ("train/anna/1.wav", "train/ben/2.wav", "dev/carl/3.wav", "test/dora/4.wav"):
        write_good(tmp_path / "speech" / place)
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech") == 0
    assert {(r["split"], r["label"]) for r in rows_of(tmp_path / "root")} == {
        ("train", "anna"),
        ("train", "ben"),
        ("valid", "carl"),
        ("test", "dora"),
    }
    write_good(tmp_path / "speech/dev/ben/5.wav")
    capsys.readouterr()
    assert prepare(tmp_path / "root3", "--clean", tmp_path / "speech") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "speaker ben occurs in valid" in error and "and in train" in error
    assert not (tmp_path / "root3").exists()
    assert prepare(tmp_path / "root3", "--clean", tmp_path / "speech", "--speaker", "none") == 0


def test_converted_files_train_and_mix(tmp_path):
    for speaker in range(4):
        path = tmp_path / "speech" / f"s{speaker}" / "take.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, speech(speaker, 1.2, 44100), 44100)
    for number in range(3):
        write_good(tmp_path / "noise" / f"n{number}.wav")
    options = ("--clean", tmp_path / "speech", "--noise", tmp_path / "noise", "--convert", "--valid", 0.3)
    assert prepare(tmp_path / "root", *options) == 0
    rows = rows_of(tmp_path / "root")
    assert len(rows) == 7
    for row in rows:
        recording = read(tmp_path / "root" / row["file"])
        assert recording.sample_rate_hz == int(row["sample_rate_hz"]) == 16000
        assert row["file"].startswith(f"{row['split']}/{row['kind']}/")
        assert float(row["seconds"]) == pytest.approx(len(recording.samples) / 16000, abs=1e-3)
    root = tmp_path / "root"
    mix = [
        "mix",
        "--clean",
        root / "valid/clean",
        "--noise",
        root / "valid/noise",
        "--snr",
        "0",
        "--out",
        tmp_path / "mix",
    ]
    assert cli.main([str(word) for word in mix]) == 0
    assert len(rows_of(tmp_path / "mix")) == 2


def test_converting_again_leaves_no_file_in_its_former_part(tmp_path):
    for speaker in range(6):
        write_good(tmp_path / "speech" / f"s{speaker}" / f"take{speaker}.wav")
    root = tmp_path / "root"
    for part in (0.5, 0.1):
        assert prepare(root, "--clean", tmp_path / "speech", "--convert", "--valid", part) == 0
        listed = {row["file"] for row in rows_of(root)}
        assert listed == {path.relative_to(root).as_posix() for path in root.rglob("*.flac")}
    assert sum(name.startswith("valid/") for name in listed) == 1


def test_converting_keeps_what_goes_beyond_full_scale(tmp_path):
    loud = 3 * speech() / np.abs(speech()).max()
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech" / "a.wav", loud, 16000, subtype="FLOAT")
    write_good(tmp_path / "speech" / "b.wav")
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech", "--convert", "--valid", 0) == 0
    (row,) = [row for row in rows_of(tmp_path / "root") if row["file"].endswith("a.flac")]
    np.testing.assert_allclose(read(tmp_path / "root" / row["file"]).samples[:, 0], loud / 3, atol=2**-15)


def test_a_file_of_two_folders_cannot_go_to_both_parts(tmp_path, capsys):
    for speaker in range(3):
        write_good(tmp_path / "speech" / f"s{speaker}" / f"take{speaker}.wav")
    write_good(tmp_path / "speech" / ".trash" / "x.wav")
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech", tmp_path / "speech" / "s1") == 2
    assert "take1.wav: lies in" in capsys.readouterr().err
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech") == 0
    assert len(rows_of(tmp_path / "root")) == 3


def test_nothing_usable_and_bad_options(tmp_path, capsys):
    (tmp_path / "speech").mkdir()
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech") == 2
    assert "holds no audio file" in capsys.readouterr().err
    (tmp_path / "speech/x.wav").touch()
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech") == 2
    assert "none of the 1 recordings can be used" in capsys.readouterr().err
    assert prepare(tmp_path / "root") == 2
    assert "name folders to look through" in capsys.readouterr().err
    assert prepare(tmp_path / "root", "--clean", tmp_path / "nowhere") == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech", "--valid", 1.5) == 2
    assert "must lie in [0, 1)" in capsys.readouterr().err


def test_manifest_without_training_files_is_refused(tmp_path):
    from saf_jax.errors import UserError

    write_good(tmp_path / "speech/valid/a/1.wav")
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech") == 0
    table = tmp_path / "root/manifest.csv"
    config = load_config("paper", [f"data.train_clean={table}", f"data.train_noise={table}"])
    with pytest.raises(UserError, match=r"manifest.csv: names no clean files for training"):
        training_batches(config)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"is no manifest: the column 'file' is missing"):
        training_batches(config)
    table.write_text("file,kind,split\n1,2\n")
    with pytest.raises(UserError, match=r"line 2 has not as many fields"):
        training_batches(config)


@pytest.mark.skipif("SAF_AUDIO" not in os.environ, reason="SAF_AUDIO does not name a folder of real recordings")
def test_real_folders(tmp_path, capsys):
    folder = os.environ["SAF_AUDIO"]
    status = prepare(
        tmp_path / "root", "--clean", f"{folder}/dev/clean", "--noise", f"{folder}/dev/noise", "--valid", 0.2
    )
    left_out = rows_of(tmp_path / "root", "left_out.csv")
    rows = rows_of(tmp_path / "root")
    print([row["problem"] for row in left_out], file=sys.stderr)
    assert status == (1 if left_out else 0)
    assert len(left_out) <= 3
    total = sum(len(files) for _, _, files in os.walk(f"{folder}/dev"))
    assert len(rows) + len(left_out) == total - 2  # two tables


@pytest.mark.parametrize(
    "options", [("--noise", "data/train/noise"), ("--clean", "data/train/clean", "--speaker", "none")]
)
def test_recordings_are_never_converted_into_themselves(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / options[1] / "rain.flac"
    path.parent.mkdir(parents=True)
    soundfile.write(path, np.stack([speech(rate=48000)] * 2, axis=1), 48000)
    before = path.read_bytes()
    assert prepare("data", *options, "--convert", "--valid", 0) == 2
    assert "is one of the recordings, which would be replaced: name another --root" in capsys.readouterr().err
    assert path.read_bytes() == before and not (tmp_path / "data" / "manifest.csv").exists()


def test_files_of_others_are_not_converted_over(tmp_path, capsys):
    write_good(tmp_path / "speech" / "a.wav")
    mine = write_good(tmp_path / "root" / "train" / "clean" / "a.flac")
    before = mine.read_bytes()
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech", "--convert", "--valid", 0) == 2
    assert "exists and was not made by an earlier call" in capsys.readouterr().err and mine.read_bytes() == before


def test_what_was_converted_is_known_after_other_and_interrupted_calls(tmp_path, monkeypatch):
    for speaker in range(6):
        write_good(tmp_path / "speech" / f"s{speaker}" / f"take{speaker}.wav")
    root, clean = tmp_path / "root", ("--clean", tmp_path / "speech")
    with monkeypatch.context() as patch:
        # Ends when some files are there, before the manifest.
        patch.setattr(prepare_command, "_remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(root, *clean, "--convert", "--valid", 0.5) == 130
    assert list(root.rglob("*.flac")) and not (root / "manifest.csv").exists()
    for more in (("--convert", "--valid", 0.4), ("--valid", 0.5), ("--convert", "--valid", 0.1)):
        assert prepare(root, *clean, *more) == 0
    listed = {row["file"] for row in rows_of(root)}
    assert listed == {path.relative_to(root).as_posix() for path in root.rglob("*.flac")} and len(listed) == 6


def test_a_table_of_the_users_own_is_not_replaced(tmp_path, capsys):
    write_good(tmp_path / "noise" / "a.wav")
    (tmp_path / "noise" / "manifest.csv").write_text("file,kind_of_noise\na.wav,rain\n")
    assert prepare(tmp_path / "noise", "--noise", tmp_path / "noise") == 2
    assert "is another table, which would be replaced: name another --root" in capsys.readouterr().err
    assert "rain" in (tmp_path / "noise" / "manifest.csv").read_text()


def test_a_list_of_the_users_own_takes_no_file_away(tmp_path, capsys):
    write_good(tmp_path / "speech" / "a.wav")
    mine = write_good(tmp_path / "root" / "precious.wav")
    (tmp_path / "root" / "converted.csv").write_text("file,by\nprecious.wav,me\n")
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech", "--convert", "--valid", 0) == 2
    assert "converted.csv: is another table" in capsys.readouterr().err and mine.exists()


def test_linked_folders_are_looked_through(tmp_path):
    write_good(tmp_path / "stored" / "s1" / "b.wav")
    write_good(tmp_path / "speech" / "s0" / "a.wav")
    (tmp_path / "speech" / "more").symlink_to(tmp_path / "stored")
    assert prepare(tmp_path / "root", "--clean", tmp_path / "speech", "--valid", 0) == 0
    assert len(rows_of(tmp_path / "root")) == 2
