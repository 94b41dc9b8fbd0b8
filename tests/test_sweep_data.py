"""The recordings of a sweep: what is planned before anything is written, and what is made of it."""

import csv

import numpy as np
import pytest
from pairs import speech_like

from saf_jax import audio
from saf_jax.errors import UserError
from saf_jax.sweep_data import audio_folder, plan_data, portable
from saf_jax.sweep_spec import Budget, NoiseFiles, TestSet, load_budget

SMALL = load_budget("small")


@pytest.fixture
def recordings(tmp_path):
    """train/clean, train/noise, dev/clean, dev/noise: a second each."""
    root = tmp_path / "recordings"
    rng = np.random.default_rng(0)
    for part in ("train", "dev"):
        for number in range(3):
            voice = audio.Audio(np.float32(0.3) * speech_like(1, number), 16000)
            audio.write(root / part / "clean" / f"s{number}.flac", voice)
        for name in ("rain_1", "rain_2", "dog_1"):
            hiss = audio.Audio((0.1 * rng.standard_normal(16000)).astype(np.float32), 16000)
            audio.write(root / part / "noise" / f"{name}.flac", hiss)
    return root


def plan(workdir, audio_root, *, budget=SMALL, given=None, selections=(), tests=()):
    return plan_data(workdir, audio_root, budget, given or {}, selections, tests)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_main_set_is_mixed_once_of_what_the_training_does_not_have(tmp_path, recordings):
    data = plan(tmp_path / "w", recordings)
    assert not (tmp_path / "w").exists()
    assert data.settings["data.train_clean"] == [str(recordings / "train" / "clean")]
    assert data.settings["data.valid_noisy"] == [str(data.sets[0].noisy)] and "data.train_rir" not in data.settings
    data.make()
    (dev,) = data.sets
    mixed = rows(dev.noisy.parent / "manifest.csv")
    assert dev.name == "dev" and len(mixed) == len(audio.list_audio(dev.clean)) > 0
    assert {float(row["snr_db"]) for row in mixed} <= set(SMALL.snr_db)
    before = {path: path.stat().st_mtime_ns for path in dev.noisy.iterdir()}
    plan(tmp_path / "w", recordings).make()
    assert {path: path.stat().st_mtime_ns for path in dev.noisy.iterdir()} == before


def test_a_set_is_known_by_its_recordings_wherever_they_lie(tmp_path, recordings):
    key = plan(tmp_path / "a", recordings).sets[0].key
    moved = recordings.rename(tmp_path / "elsewhere")
    assert plan(tmp_path / "b", moved).sets[0].key == key
    audio.write(moved / "dev" / "noise" / "rain_3.flac", audio.Audio(np.full(8000, 0.1, np.float32), 16000))
    assert plan(tmp_path / "b", moved).sets[0].key != key


def test_rows_choose_noise_by_names_of_files(tmp_path, recordings):
    dry, wet = NoiseFiles(exclude=("rain_*",)), NoiseFiles(include=("rain_*",))
    data = plan(tmp_path / "w", recordings, selections=(NoiseFiles(), dry, wet))
    assert set(data.noise) == {dry, wet}
    assert data.settings_for(NoiseFiles())["data.train_noise"] == [str(recordings / "train" / "noise")]
    data.make()
    names = [
        [row["file"].rsplit("/", 1)[1] for row in rows(tmp_path / "w" / "data" / data.noise[choice].name)]
        for choice in (dry, wet)
    ]
    assert names == [["dog_1.flac"], ["rain_1.flac", "rain_2.flac"]]
    assert data.settings_for(wet)["data.train_noise"] == [str(data.noise[wet])]
    # Another machine, on which the recordings lie elsewhere: a manifest of its own, known by the same name.
    moved = recordings.rename(tmp_path / "moved")
    other = plan(tmp_path / "w", moved, selections=(wet,))
    assert other.noise[wet] != data.noise[wet]
    assert portable(str(other.noise[wet]), other.places) == portable(str(data.noise[wet]), data.places)
    moved.rename(recordings)
    for pattern, message in (("snow_*", "is named like 'snow_"), ("*", "nothing is left of the noise")):
        with pytest.raises(UserError, match=message):
            plan(tmp_path / "w", recordings, selections=(NoiseFiles(exclude=(pattern,)),))


def test_babble_is_made_of_voices(tmp_path, recordings):
    babble = TestSet("babble", "dev/clean", babble="train/clean", snr_db=(0,), files=2)
    data = plan(tmp_path / "w", recordings, tests=(babble,))
    data.make()
    made = data.sets[1]
    assert made.name == "babble" and len(audio.list_audio(made.noisy)) == 2
    assert {row["noise"] for row in rows(made.noisy.parent / "manifest.csv")} == {"babble"}


def test_without_recordings_the_demo_corpus_stands_in(tmp_path):
    data = plan(tmp_path / "w", None)
    assert data.sets[0].name == "test" and "demo" in data.settings["data.train_clean"][0]
    with pytest.raises(UserError, match="needs recordings"):
        plan(tmp_path / "w", None, tests=(TestSet("far", "dev/clean", noise="dev/noise"),))
    with pytest.raises(UserError, match="trains on data of your own"):
        plan(tmp_path / "w", None, budget=Budget(seeds=(0,), own_data=True))


def test_named_data_win(tmp_path, recordings):
    pairs = {
        "data.valid_clean": [str(recordings / "dev" / "clean")],
        "data.valid_noisy": [str(recordings / "dev" / "clean")],
    }
    data = plan(tmp_path / "w", recordings, given={**pairs, "data.train_noise": "mine"})
    assert [item.name for item in data.sets] == ["valid"] and data.settings["data.train_noise"] == "mine"
    with pytest.raises(UserError, match="name them in pairs"):
        plan(tmp_path / "w", recordings, given={**pairs, "data.valid_noisy": []})
    with pytest.raises(UserError, match="two sets to score are called 'valid'"):
        folder = str(recordings / "dev" / "clean")
        plan(tmp_path / "w", recordings, given=pairs, tests=(TestSet("valid", folder, folder),))


def test_what_is_missing_is_named(tmp_path, recordings, monkeypatch):
    for path in (recordings / "train" / "noise").iterdir():
        path.unlink()
    (recordings / "train" / "noise").rmdir()
    with pytest.raises(UserError, match="train/noise: no such folder"):
        plan(tmp_path / "w", recordings)
    monkeypatch.setenv("SAF_AUDIO", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"SAF_AUDIO=.*nowhere: no such folder"):
        audio_folder(None)
    monkeypatch.delenv("SAF_AUDIO")
    assert audio_folder(None) is None and audio_folder(str(recordings)) == recordings


def test_paths_go_by_the_names_of_their_places():
    places = {"/data/a": "AUDIO"}
    assert portable(["/data/a/train", "/data/ab", 3], places) == ["AUDIO/train", "/data/ab", 3]
