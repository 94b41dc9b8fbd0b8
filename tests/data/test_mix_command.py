"""`saf-jax mix`: reproducible test sets that hold what their manifest says."""

import csv
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile
from speechlike import speechlike

from saf_jax import cli
from saf_jax.audio import read
from saf_jax.data.active_level import active_level_db, snr_db
from saf_jax.data.mix_command import MixSettings, _plan, fingerprint


@pytest.fixture
def command(pools, tmp_path):
    def run(*options, out="out", clean=pools / "clean", noise=pools / "noise", snr="-5,0,10"):
        words = ["mix", "--clean", clean, "--noise", noise, "--snr", snr, "--out", tmp_path / out, *options]
        return cli.main([str(word) for word in words])

    return run


def manifest(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("rooms", [False, True])
def test_stems_hold_the_stated_ratio(command, pools, tmp_path, rooms):
    assert command(*(["--rir", pools / "rir"] if rooms else [])) == 0
    rows = manifest(tmp_path / "out")
    assert len(rows) == 9 * 3
    for row in rows:
        noisy, clean, noise = (
            read(tmp_path / "out" / row["file"].replace("noisy/", f"{kind}/")) for kind in ("noisy", "clean", "noise")
        )
        assert noisy.sample_rate_hz == 16000 and noisy.subtype == clean.subtype == "PCM_16"
        assert snr_db(clean.samples[:, 0], noise.samples[:, 0], 16000) == pytest.approx(float(row["snr_db"]), abs=0.1)
        late = (noisy.samples - clean.samples - noise.samples)[:, 0]
        assert (np.abs(late).max() > 1e-3) == rooms
        assert np.abs(noisy.samples).max() < 1
        assert float(row["seconds"]) == pytest.approx(len(noisy.samples) / 16000, abs=1e-3)
        assert (pools / "clean" / row["clean_file"]).is_file() and (pools / "noise" / row["noise_file"]).is_file()
        assert bool(row["rir_file"]) == rooms
    cells = Counter((row["noise"], row["snr_db"]) for row in rows)
    assert len(cells) == 4 * 3 and max(cells.values()) - min(cells.values()) <= 1


def test_same_seed_same_bytes(command, tmp_path):
    def content(name):
        return {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.suffix in (".flac", ".csv")
        }

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert command("--seed", seed, out=name) == 0
    assert content("a") == content("b")
    assert content("a") != content("c")


def test_grid_and_files_and_format(command, tmp_path):
    assert command("--grid", "--files", 2, "--format", "wav", "--rate", 8000, "--level", -20) == 0
    rows = manifest(tmp_path / "out")
    assert len(rows) == 2 * 3 * 4
    assert {Counter(row["clean_file"] for row in rows)[row["clean_file"]] for row in rows} == {12}
    assert read(tmp_path / "out" / rows[0]["file"]).sample_rate_hz == 8000
    assert rows[0]["file"].endswith(".wav")
    clean = read(tmp_path / "out" / rows[0]["file"].replace("noisy", "clean", 1))
    assert active_level_db(clean.samples[:, 0], 8000) == pytest.approx(-20, abs=0.5)


def test_ratios_take_turns(command, tmp_path):
    assert command("--turns") == 0
    rows = manifest(tmp_path / "out")
    assert len({row["clean_file"] for row in rows}) == len(rows) == 9
    assert Counter(row["snr_db"] for row in rows) == {"-5": 3, "0": 3, "10": 3}


def test_a_set_of_another_version_is_made_anew(command, tmp_path):
    assert command("--turns") == 0
    marker, table = tmp_path / "out" / "mix.json", tmp_path / "out" / "manifest.csv"
    whole = table.read_text()
    stale = whole + "\n"
    table.write_text(stale)
    assert command("--turns") == 0
    assert table.read_text() == stale
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 1}))
    assert command("--turns") == 0
    assert table.read_text() == whole


def test_a_set_is_found_wherever_its_sources_lie_and_made_anew_when_they_change(command, pools, tmp_path, capsys):
    def there_already(**options):
        assert command(**options) == 0
        return "are there already" in capsys.readouterr().out

    noise = tmp_path / "elsewhere" / "noise"
    shutil.copytree(pools / "noise", noise)
    assert not there_already()
    assert there_already(noise=noise)
    assert str(tmp_path) not in (tmp_path / "out" / "mix.json").read_text()
    other = np.random.default_rng(9).normal(0, 0.1, soundfile.info(noise / "n0.wav").frames)
    soundfile.write(noise / "n0.wav", other, soundfile.info(noise / "n0.wav").samplerate)
    assert not there_already(noise=noise) and there_already(noise=noise)
    names = sorted(path.name for path in noise.glob("*.wav"))
    for kind in ("street", "bus"):
        # As a spreadsheet writes it, with a byte order mark.
        (noise.parent / "noise.csv").write_text(
            "file,noise\n" + "".join(f"{name},{kind}\n" for name in names), encoding="utf-8-sig"
        )
        assert not there_already(noise=noise)
        assert {row["noise"] for row in manifest(tmp_path / "out")} == {kind}


def test_what_else_lies_in_a_finished_set_is_never_thrown_away(command, tmp_path, capsys):
    assert command() == 0
    mine = tmp_path / "out" / "results" / "scores.csv"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert command() == 0
    assert command(snr="3") == 2
    assert "holds something else" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_a_set_goes_through_a_link_but_not_to_the_current_folder(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for ratio in ("3", "4"):
        assert command(out="link", snr=ratio) == 0
        assert {row["snr_db"] for row in manifest(tmp_path / "real")} == {ratio}
    monkeypatch.chdir(tmp_path)
    assert command(out="") == 2
    assert "is the current folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_folders_that_prepare_looked_through_can_be_mixed(command, tmp_path, pools):
    clean = tmp_path / "speech"
    shutil.copytree(pools / "clean", clean)
    assert cli.main(["prepare", "folder", "--clean", str(clean), "--root", str(clean)]) == 0
    assert command(clean=clean) == 0


@pytest.mark.parametrize("ratios", range(1, 7))
@pytest.mark.parametrize("kinds", [*range(1, 9), 11, 14, 15])
def test_with_turns_every_kind_meets_every_ratio_equally_often(tmp_path, kinds, ratios):
    for folder, count in (("clean", kinds * ratios), ("noise", kinds)):
        for number in range(count):
            place = tmp_path / folder / (f"k{number}" if folder == "noise" else "")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:03}.wav").touch()
    settings = MixSettings(
        tmp_path / "clean", tmp_path / "noise", tmp_path / "out", tuple(map(float, range(ratios))), turns=True
    )
    plans = _plan(settings)
    assert set(Counter((plan.kind, plan.snr_db) for plan in plans).values()) == {1}
    assert len(plans) == kinds * ratios


def test_noise_files_are_chosen_by_name(command, tmp_path, capsys):
    assert command("--noise-files", "n1*", "n3*") == 0
    assert {row["noise_file"] for row in manifest(tmp_path / "out")} == {"n1.wav", "n3.wav"}
    assert command("--noise-files", "snow*", out="none") != 0
    assert "no file is named like snow*" in capsys.readouterr().err
    assert command("--grid", "--turns", out="none") != 0
    assert "--grid and --turns exclude each other" in capsys.readouterr().err


def test_a_set_is_known_by_its_settings_and_recordings_not_by_its_folder(pools, tmp_path):
    def known(out="a", noise=pools / "noise", **options):
        return fingerprint(MixSettings(pools / "clean", noise, tmp_path / out, (0.0, 5.0), **options))

    assert known() == known(out="b")
    assert not {known(turns=True), known(noise_files=("n1*",)), known(files=2)} & {known()}
    other = tmp_path / "noise"
    shutil.copytree(pools / "noise", other)
    assert known(noise=other) == known()
    (other / "n0.wav").unlink()
    assert known(noise=other) != known()


def test_kinds_come_from_table_or_subfolders(command, pools, tmp_path):
    noise = tmp_path / "noises"
    for kind in ("street", "café"):
        (noise / kind).mkdir(parents=True)
        soundfile.write(noise / kind / "x.wav", 0.1 * np.random.default_rng(0).standard_normal(9000), 16000)
    assert command(noise=noise, out="a") == 0
    assert {row["noise"] for row in manifest(tmp_path / "a")} == {"street", "café"}
    (tmp_path / "noises.tsv").write_text("file\tlabel\nstreet/x.wav\tRoad\ncafé/x.wav\tBar\n", encoding="utf-8")
    assert command(noise=noise, out="b") == 0
    assert {row["noise"] for row in manifest(tmp_path / "b")} == {"Road", "Bar"}


def test_finished_set_is_found_and_other_settings_replace_it(command, tmp_path, capsys):
    assert command() == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.flac")}
    assert command() == 0
    assert "are there already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.flac")}
    assert command(snr="3") == 0
    assert {row["snr_db"] for row in manifest(tmp_path / "out")} == {"3"}
    assert len(list((tmp_path / "out" / "noisy").iterdir())) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snr": "loud"}, "--snr loud: write numbers"),
        ({"snr": "5,5"}, "names a ratio twice"),
        ({"snr": "inf"}, "name at least one ratio"),
        ({"noise": "nowhere"}, "nowhere: no such folder"),
        ({"clean": "silent"}, "zero.wav: is silent"),
        ({"noise": "silent"}, "zero.wav: is silent where it was tried"),
        ({"out": "taken"}, "taken: exists and holds something else"),
        ({"snr": "80"}, "16 bits hold"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(command, tmp_path, capsys, options, message):
    (tmp_path / "silent").mkdir()
    soundfile.write(tmp_path / "silent" / "zero.wav", np.zeros(8000), 16000)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for key in ("noise", "clean"):
        if key in options:
            options = {**options, key: tmp_path / options[key]}
    assert command(**options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_two_files_of_one_name_are_refused(command, tmp_path, capsys):
    for name in ("a/b.wav", "a-b.wav"):
        path = tmp_path / "speech" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speechlike(np.random.default_rng(0), 8000), 16000)
    assert command("--grid", clean=tmp_path / "speech") == 2
    assert "two files would give the mixture a-b_" in capsys.readouterr().err


@pytest.mark.skipif("SAF_AUDIO" not in os.environ, reason="SAF_AUDIO does not name a folder of real recordings")
def test_real_recordings(command, tmp_path):
    """Impulsive noises and very low ratios are where a peak limit and 16 bits could spoil the ratio."""
    folder = os.environ["SAF_AUDIO"]
    assert command("--files", "6", clean=f"{folder}/test/clean", noise=f"{folder}/test/noise", snr="-10,-5,0,15") == 0
    rows = manifest(tmp_path / "out")
    assert len(rows) == 24
    assert len({row["noise"] for row in rows}) >= 8 and len({row["speaker"] for row in rows}) == 5
    for row in rows:
        clean, noise = (
            read(tmp_path / "out" / row["file"].replace("noisy/", f"{kind}/")).samples[:, 0]
            for kind in ("clean", "noise")
        )
        assert snr_db(clean, noise, 16000) == pytest.approx(float(row["snr_db"]), abs=0.1)


@pytest.mark.parametrize("name", ["clean/mine.txt", "noisy/mine.wav", "noise/deep/mine.txt"])
def test_what_lies_among_a_sets_recordings_is_never_thrown_away(command, tmp_path, capsys, name):
    assert command() == 0
    mine = tmp_path / "out" / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    assert command("--seed", 1) == 2
    assert "holds something else" in capsys.readouterr().err and mine.read_text() == "mine"


def test_a_set_that_lost_a_file_is_made_anew(command, tmp_path):
    assert command() == 0
    lost = next((tmp_path / "out" / "noisy").iterdir())
    content = lost.read_bytes()
    lost.unlink()
    assert command() == 0 and lost.read_bytes() == content
    shutil.rmtree(tmp_path / "out" / "clean")
    assert command() == 0 and len(list((tmp_path / "out" / "clean").iterdir())) == len(manifest(tmp_path / "out"))


def test_the_current_folder_can_be_mixed(command, pools, monkeypatch):
    monkeypatch.chdir(pools / "clean")
    assert command(clean=".") == 0
    monkeypatch.chdir(pools / "noise")
    assert command(noise=".", out="other") == 0
