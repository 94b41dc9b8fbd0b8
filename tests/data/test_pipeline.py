"""Training batches: right content, same for everybody, to be continued anywhere."""

import collections
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from speechlike import speechlike

from saf_jax.audio import read_mono
from saf_jax.data.active_level import snr_db
from saf_jax.data.examples import Crops, MixedExamples
from saf_jax.data.pipeline import (
    describe_examples,
    examples_per_epoch,
    training_batches,
    validation_pairs,
)
from saf_jax.data.recordings import Storage
from saf_jax.errors import UserError


def take(config, count, **where):
    batches = training_batches(config, **where)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs):
        assert mine.keys() == other.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key], err_msg=key)


def test_batches_hold_crops_of_the_pairs(pair_config, pair_folders):
    config = pair_config()
    whole = {path.stem: read_mono(path, 16000) for path in (pair_folders / "clean").iterdir()}
    for batch in take(config, 6):
        assert {key: value.dtype.name for key, value in batch.items()} == {
            "noisy": "float32",
            "clean": "float32",
            "samples": "int32",
            "index": "int64",
        }
        assert batch["noisy"].shape == batch["clean"].shape == (4, 16000)
        for row, files in enumerate(describe_examples(config, batch["index"])):
            name = files.split(" + ")[0].rpartition("/")[2].removesuffix(".wav")
            count, source = int(batch["samples"][row]), whole[name]
            assert count == min(16000, len(source))
            crop = batch["clean"][row, :count]
            starts = np.flatnonzero(source[: len(source) - count + 1] == crop[0])
            assert any(np.array_equal(source[start : start + count], crop) for start in starts)
            assert not batch["clean"][row, count:].any() and not batch["noisy"][row, count:].any()
        # Noisy is half of clean in these files: equal crops of both.
        np.testing.assert_array_equal(batch["noisy"], batch["clean"] / 2)


def test_an_epoch_holds_every_example_once_and_epochs_differ(pair_config):
    config = pair_config("train.batch_size=1")
    # Recordings of 0.2 to 3.1 s in crops of 1 s: one each up to 1.5 s, two up to 2.5 s, three beyond.
    count = examples_per_epoch(config)
    assert count == 6 + 2 * 4 + 3 * 3
    names = describe_examples(config, np.arange(2 * count))
    first, second = names[:count], names[count:]
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 13


def test_same_seed_same_batches_other_seed_others(pair_config):
    first = take(pair_config(), 8)
    assert_same(first, take(pair_config(), 8))
    other = take(pair_config("train.seed=1"), 8)
    assert any(not np.array_equal(a["clean"], b["clean"]) for a, b in zip(first, other))


def test_workers_change_nothing(mix_config):
    """Two workers here; one worker is compared in the tests of resuming, with pairs and with mixtures."""
    assert_same(take(mix_config(), 9), take(mix_config("data.workers=2"), 9))


def test_mixtures_tell_what_they_are_made_of(mix_config, pools):
    batch = take(mix_config(), 1)[0]
    lines = describe_examples(mix_config(), batch["index"])
    assert len(lines) == 4
    for line, clean in zip(lines, batch["clean"]):
        assert line.startswith(f"{pools / 'clean'}/s")
        assert (" at -inf dB" in line) == (not clean.any())


def test_noise_folders_have_weights(mix_config, pools, tmp_path):
    (tmp_path / "beep").mkdir()
    soundfile.write(tmp_path / "beep" / "beep.wav", np.sin(np.arange(4000)), 16000)
    noise = f"data.train_noise=[{pools / 'noise'},{tmp_path / 'beep'}]"
    plain = [f"mixing.{key}=0" for key in ("babble", "generated", "more_noises", "noise_transform")]

    def share(*overrides):
        config = mix_config(noise, *plain, *overrides)
        return np.mean(["beep" in line for line in describe_examples(config, np.arange(120))])

    assert share() < 0.2
    assert 0.6 < share("data.train_noise_weights=[1, 3]") < 0.9
    assert share("data.train_noise_weights=[0, 1]") == 1


def test_a_speech_folder_named_twice_is_heard_twice_as_often(mix_config, pools):
    once, twice = mix_config(), mix_config(f"data.train_clean=[{pools / 'clean'},{pools / 'clean'}]")
    count = examples_per_epoch(once)
    assert examples_per_epoch(twice) == 2 * count

    def heard(config, examples):
        lines = describe_examples(config, np.arange(examples))
        return collections.Counter(line.split(":")[0] for line in lines)

    assert heard(twice, 2 * count) == {file: 2 * times for file, times in heard(once, count).items()}


def test_file_that_vanishes_during_training_is_named(pair_config, tmp_path):
    config = _bad(pair_config, tmp_path, "none")
    batches = training_batches(dataclasses.replace(config, data=dataclasses.replace(config.data, cache_gb=0.0)))
    next(batches)
    (tmp_path / "noisy" / "b.wav").unlink()
    with pytest.raises(UserError, match=r"noisy/b\.wav: no such file"):
        for _ in range(50):
            next(batches)
    batches.close()


def test_processes_share_each_batch(pair_config):
    together = take(pair_config(), 5)
    parts = [take(pair_config(), 5, process_index=index, process_count=2) for index in range(2)]
    for whole, first, second in zip(together, *parts):
        assert first["clean"].shape == (2, 16000)
        joined = {key: np.concatenate([first[key], second[key]]) for key in first}
        order = np.argsort(joined["index"])
        assert_same([whole], [{key: value[order] for key, value in joined.items()}])
    with pytest.raises(UserError, match=r"train.batch_size=4: must be a multiple of the 3 processes"):
        training_batches(pair_config(), process_count=3)


@pytest.mark.parametrize("cache", ["data.cache_gb=0", "data.cache_gb=0.0005", "data.cache_folder={tmp_path}/cache"])
def test_cache_changes_nothing(pair_config, tmp_path, cache):
    assert_same(take(pair_config(), 4), take(pair_config(cache.format(tmp_path=tmp_path)), 4))


def test_resume_is_exact_whatever_the_workers(pair_config):
    batches = training_batches(pair_config())
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(5)]
    for overrides in ((), ("data.workers=1",)):
        resumed = training_batches(pair_config(*overrides))
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert_same(expected, [next(resumed) for _ in range(5)])
        # Also in an iterator that is under way.
        resumed.set_state(state)
        assert_same(expected[:1], [next(resumed)])
        resumed.close()


def test_state_of_other_data_is_refused(pair_config):
    state = training_batches(pair_config()).get_state()
    for override in ("train.seed=5", "data.crop_seconds=0.5", "train.batch_size=2"):
        with pytest.raises(UserError, match=r"training data differ from the checkpoint's"):
            training_batches(pair_config(override)).set_state(state)


def test_state_of_other_recordings_is_refused(mix_config, pools, tmp_path):
    state = training_batches(mix_config()).get_state()
    noise = tmp_path / "noise"
    shutil.copytree(pools / "noise", noise)
    moved = mix_config(f"data.train_noise={noise}")
    training_batches(moved).set_state(state)
    (noise / "n0.wav").rename(noise / "n9.wav")
    with pytest.raises(UserError, match=r"training data differ from the checkpoint's \(recordings: "):
        training_batches(moved).set_state(state)


_KILLED = """
    import json, os, sys, zlib
    from saf_jax.config import load_config
    from saf_jax.data.pipeline import training_batches

    def main():
        state_file, overrides = sys.argv[1], sys.argv[2:]
        batches = training_batches(load_config("paper", overrides))
        if os.path.exists(state_file):
            batches.set_state(json.load(open(state_file)))
        while True:
            batch = next(batches)
            digest = zlib.crc32(b"".join(batch[key].tobytes() for key in sorted(batch)))
            # As a training does it: the state is saved after some steps, the process dies later.
            if batches.get_state()["next_batch"] % 3 == 0:
                with open(state_file + ".new", "w") as file:
                    json.dump(batches.get_state(), file)
                os.replace(state_file + ".new", state_file)
            print(batches.get_state()["next_batch"], digest, flush=True)

    if __name__ == "__main__":
        main()
"""


def test_kill_and_resume_gives_the_batches_of_no_kill(mix_config, pools, tmp_path):
    """Killed while a worker runs, resumed without workers."""
    script = tmp_path / "training.py"
    script.write_text(textwrap.dedent(_KILLED))
    overrides = [f"data.train_{kind}={pools / kind}" for kind in ("clean", "noise", "rir")]
    overrides += ["data.crop_seconds=1.5", "train.batch_size=4"]

    def run_until(last, workers):
        lines = {}
        process = subprocess.Popen(
            [sys.executable, script, tmp_path / "state.json", *overrides, f"data.workers={workers}"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        try:
            for line in process.stdout:
                number, digest = map(int, line.split())
                lines[number] = digest
                if number >= last:
                    break
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        return lines

    expected = {
        number: zlib.crc32(b"".join(batch[key].tobytes() for key in sorted(batch)))
        for number, batch in enumerate(take(mix_config(), 16), 1)
    }
    first = run_until(8, workers=1)
    second = run_until(16, workers=0)
    assert min(second) > 1 and min(second) <= max(first) + 1
    assert max(second) >= 16
    assert expected.items() <= {**first, **second}.items()
    # Batches differ from each other: equal digests mean something.
    assert len(set(expected.values())) == len(expected)


def test_validation_pairs_are_whole(pair_config, pair_folders):
    pairs = validation_pairs(pair_config())
    assert [pair.name for pair in pairs] == [f"a{number:02d}" for number in range(13)]
    for pair in pairs:
        np.testing.assert_array_equal(pair.clean, read_mono(pair_folders / "clean" / f"{pair.name}.wav", 16000))
        np.testing.assert_array_equal(pair.noisy, pair.clean / 2)


def test_other_rates_and_channels_are_converted(tmp_path):
    from saf_jax.config import load_config

    time = np.arange(48000) / 48000
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    for kind in ("clean", "noisy"):
        (tmp_path / kind).mkdir()
        soundfile.write(tmp_path / kind / "x.flac", np.stack([tone, np.zeros_like(tone)], 1), 48000)
    config = load_config(
        "paper", [f"data.train_{kind}={tmp_path / kind}" for kind in ("clean", "noisy")] + ["data.crop_seconds=1"]
    )
    batch = take(config, 1)[0]
    expected = 0.15 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    # The ends ring, where the tone begins and ends at once.
    np.testing.assert_allclose(batch["noisy"][0, 500:-500], expected[500:-500], atol=1e-3)
    assert (batch["samples"] == 16000).all()


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=20),
    crop=st.integers(1, 120),
    seed=st.integers(0, 99),
)
def test_crops_lie_inside_and_cover_long_recordings(lengths, crop, seed):
    crops = Crops(np.array(lengths), crop)
    rng = np.random.default_rng(seed)
    drawn = [crops.draw(rng, number) for number in range(len(crops))]
    assert {file for file, _, _ in drawn} == set(range(len(lengths)))
    for file, start, count in drawn:
        assert count == min(crop, lengths[file])
        assert 0 <= start <= lengths[file] - count
    for file, length in enumerate(lengths):
        starts = [start for which, start, _ in drawn if which == file]
        assert starts == sorted(starts)
        assert len(starts) == max(1, round(length / crop))


def _bad(pair_config, tmp_path, case):
    clean, noisy = tmp_path / "clean", tmp_path / "noisy"
    clean.mkdir()
    noisy.mkdir()
    samples = 0.1 * np.sin(np.arange(16000) / 10)
    for folder in (clean, noisy):
        for name in ("a.wav", "b.wav"):
            soundfile.write(folder / name, samples, 16000)
    overrides = {"train_clean": str(clean), "train_noisy": str(noisy)}
    if case == "no folder":
        overrides["train_clean"] = str(tmp_path / "nowhere")
    elif case == "empty folder":
        (tmp_path / "empty").mkdir()
        overrides["train_noisy"] = str(tmp_path / "empty")
    elif case == "no partner":
        (noisy / "b.wav").unlink()
    elif case == "other length":
        soundfile.write(noisy / "b.wav", samples[:15000], 16000)
    elif case == "not paired folders":
        overrides["train_clean"] = f"[{clean},{clean}]"
    elif case == "nothing named":
        overrides = {"train_clean": "[]", "train_noisy": "[]"}
    elif case == "no noise":
        overrides["train_noisy"] = "[]"
    elif case == "truncated":
        data = (noisy / "b.wav").read_bytes()
        (noisy / "b.wav").write_bytes(data[:20000])
    elif case == "not audio":
        (noisy / "b.wav").write_text("hello")
    elif case == "nan":
        soundfile.write(noisy / "b.wav", np.where(np.arange(16000) == 5, np.nan, samples), 16000, subtype="FLOAT")
    return pair_config(*[f"data.{key}={value}" for key, value in overrides.items()])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no folder", r"nowhere: no such folder"),
        ("empty folder", r"empty: holds no audio file"),
        ("no partner", r"clean/b\.wav: has no partner"),
        ("other length", r"clean/b\.wav has 16000 samples, \S+/noisy/b\.wav has 15000"),
        ("not paired folders", r"data\.train_clean names 2 folders, data\.train_noisy 1"),
        ("nothing named", r"data\.train_clean is empty"),
        ("no noise", r"data\.train_noisy and data\.train_noise are empty"),
        ("truncated", r"noisy/b\.wav: truncated"),
        ("not audio", r"noisy/b\.wav: cannot be read as audio"),
        ("nan", r"noisy/b\.wav: 1 samples are NaN"),
    ],
)
def test_bad_training_data_is_named_before_training(pair_config, tmp_path, case, message):
    config = _bad(pair_config, tmp_path, case)
    with pytest.raises(UserError, match=message) as caught:
        training_batches(config)
    assert "\n" not in str(caught.value)


def test_small_mismatch_is_trimmed(pair_config, tmp_path):
    config = _bad(pair_config, tmp_path, "none")
    samples = 0.1 * np.sin(np.arange(15900) / 10)
    soundfile.write(tmp_path / "noisy" / "b.wav", samples, 16000)
    lengths = {int(samples) for batch in take(config, 4) for samples in batch["samples"]}
    assert lengths == {15900, 16000}


@pytest.fixture
def pausing(tmp_path):
    """Four recordings of 12 s: 2 s of a voice, then hiss 50 dB below it."""
    rng = np.random.default_rng(0)
    for number in range(4):
        samples = 1e-3 * rng.standard_normal(12 * 16000).astype(np.float32)
        samples[:32000] += np.float32(0.3) * speechlike(rng, 32000)
        (tmp_path / "clean").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "clean" / f"p{number}.wav", samples, 16000, subtype="FLOAT")
    return tmp_path / "clean"


def test_pauses_are_no_targets(mix_config, pausing):
    """Brought to the level of speech, the hiss of a pause would be what the network is to keep."""
    plain = [f"mixing.{name}=0" for name in ("speech_free", "near_clean", "equaliser", "band_limit")]
    config = mix_config(f"data.train_clean={pausing}", "data.train_rir=[]", *plain)
    batches = take(config, 12)
    said = [line for batch in batches for line in describe_examples(config, batch["index"])]
    crops = [clean[: int(count)] for batch in batches for clean, count in zip(batch["clean"], batch["samples"])]
    spoken = [crop for crop in crops if crop.any()]
    # Three in four crops lie in the pauses: nearly all of them are moved to where somebody speaks.
    assert len(spoken) > 0.75 * len(crops)
    assert sum("no speech" in line for line in said) == len(crops) - len(spoken)
    # Neighbouring samples of a voice are alike, those of hiss are not.
    alike = [np.sum(crop[1:] * crop[:-1]) / np.sum(crop**2) for crop in spoken]
    assert min(alike) > 0.3, sorted(alike)[:5]


def test_voices_of_babble_are_others_than_the_target(mix_config, pools):
    config = mix_config("data.train_rir=[]")
    examples = MixedExamples(config, Storage(16000), 16000)
    rng = np.random.default_rng(0)
    names = [examples.voice(rng, 8000, 3)[1] for _ in range(100)]
    assert len(set(names)) == 8 and examples._speech.files[3].stem not in names
    examples.close()


def test_an_offset_of_the_recorder_is_no_noise(mix_config, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "a.wav", 0.01 * rng.standard_normal(60000) + 0.03, 16000)
    config = mix_config(
        f"data.train_noise={tmp_path / 'noise'}", "data.train_rir=[]", "mixing.snr_db=[0, 0]", "mixing.speech_free=0",
        *(f"mixing.{name}=0" for name in (
            "near_clean", "babble", "generated", "more_noises", "impulses", "noise_transform", "intermittent",
            "equaliser", "band_limit", "clipping", "speed")),
    )  # fmt: skip
    for batch in take(config, 4):
        for clean, noisy, count in zip(batch["clean"], batch["noisy"], batch["samples"]):
            noise = (noisy - clean)[: int(count)]
            assert abs(noise.mean()) < 0.1 * noise.std()
            assert snr_db(clean[: int(count)], noise, 16000) == pytest.approx(0, abs=0.3)
