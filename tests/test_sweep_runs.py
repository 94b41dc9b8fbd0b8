"""What runs of a sweep are known by, and what of them is there."""

import dataclasses

import pytest
import sweeps

from saf_jax.config import Config, load_config
from saf_jax.errors import UserError
from saf_jax.sweep_data import SweepData, plan_data
from saf_jax.sweep_runs import (
    discard_damaged_scores,
    identity_of,
    last_entry,
    plan_runs,
    scores_folder,
    share,
    state_of,
)
from saf_jax.sweep_spec import Row, Spec, load_budget, load_spec, settings_of

SMALL = load_budget("small")


def plan(name, workdir):
    """The runs of a shipped spec on the demo corpus, which is not made."""
    _, spec = load_spec(name)
    shared = {**SMALL.set, **spec.set}
    data = plan_data(workdir, None, SMALL, shared, [row.noise for row in spec.rows], ())
    rows = {row.name: {**settings_of(spec, row, "small", SMALL), **data.settings} for row in spec.rows}
    usual = {**SMALL.set, **data.settings}
    return plan_runs(spec, name, load_config(spec.base), rows, SMALL.seeds, data, workdir, usual)


def test_specs_share_the_runs_that_they_have_in_common(tmp_path):
    phase, layers = plan("phase", tmp_path), plan("layers", tmp_path)
    common = {run.folder for run in phase} & {run.folder for run in layers}
    assert common == {run.folder for run in phase if run.row == "both"}
    assert common == {run.folder for run in layers if run.row == "layers 2"}
    assert sorted(folder.name.rsplit("-", 1)[0] for folder in common) == ["base-seed0", "base-seed1"]
    assert {run.folder.name.rsplit("-", 2)[0] for run in phase} == {
        "base", "streams_magnitude_phase", "streams_magnitude", "streams_complex",
    }  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_run_is_known_wherever_its_folders_lie(tmp_path):
    here, there = (
        dataclasses.replace(
            Config(), data=dataclasses.replace(Config().data, train_clean=(f"{root}/voices",), cache_folder=f"{root}/c")
        )
        for root in ("/here", "/there/deeper")
    )
    same = identity_of(here, {"/here": "AUDIO"})
    assert same == identity_of(there, {"/there/deeper": "AUDIO"})
    assert same != identity_of(there, {})
    # Beside a folder, not in it.
    assert identity_of(here, {"/her": "AUDIO"}) == identity_of(here, {})


def test_a_run_on_other_recordings_is_another_run(tmp_path):
    (tmp_path / "voices").mkdir()
    data = SweepData({}, (), {}, {str(tmp_path): "AUDIO"}, (), tmp_path / "work" / "data")
    settings = {"data.train_clean": [str(tmp_path / "voices")], "data.train_noisy": [str(data.folder / "noisy")]}
    spec = Spec(rows=(Row("one", settings),), reference="one")

    def known():
        (run,) = plan_runs(spec, "mine.yaml", Config(), {"one": settings}, (0,), data, tmp_path / "work", {})
        return run.folder.name

    (tmp_path / "voices" / "a.wav").write_bytes(b"1")
    first = known()
    (tmp_path / "voices" / "b.wav").write_bytes(b"1")
    second = known()
    (tmp_path / "voices" / "b.wav").unlink()
    assert second != first == known()
    settings["data.train_noise"] = [str(tmp_path / "none.csv")]
    with pytest.raises(UserError, match=r"cannot read .*none\.csv"):
        known()


def test_what_a_run_is_known_by_does_not_change_with_versions():
    # Runs that people have lie in folders of these names.
    assert identity_of(Config(), {}) == "44136fa355"
    config = load_config("paper", ["model.layers=2", "model.tcn_dilations=[]", "train.seed=1", "loss.phase=0.1"])
    assert identity_of(config, {}) == "0fcb3cee36"


@pytest.mark.parametrize(
    "item", ["data.workers=2", "train.log_every=5", "train.checkpoint_seconds=9", "data.cache_gb=1"]
)
def test_what_only_speeds_a_run_up_is_not_what_it_is_known_by(item):
    assert identity_of(load_config("paper", [item]), {}) == identity_of(Config(), {})


@pytest.mark.parametrize("item", ["train.seed=1", "train.steps=10", "data.crop_seconds=2", "loss.time=0.1"])
def test_what_changes_the_result_makes_another_run(item):
    assert identity_of(load_config("paper", [item]), {}) != identity_of(Config(), {})


def test_two_rows_of_the_same_settings_are_refused(tmp_path):
    spec = Spec(rows=(Row("one", {"model.layers": 6}), Row("other", {"train.log_every": 3})), reference="one")
    with pytest.raises(UserError, match=r"mine\.yaml: the rows 'one' and 'other' are the same settings"):
        sweeps.planned(tmp_path, spec)


def test_a_row_that_does_not_fit_is_named(tmp_path):
    spec = Spec(rows=(Row("one"), Row("other", {"model.heads": 5})), reference="one")
    with pytest.raises(UserError, match=r"mine.yaml: row 'other': model\.heads=5: must divide"):
        sweeps.planned(tmp_path, spec)


def test_the_first_seed_of_all_rows_comes_first(tmp_path):
    runs, _ = sweeps.planned(tmp_path, sweeps.spec_of("a", "b", "c"), seeds=(3, 1))
    assert [run.name for run in runs] == [f"{row}, seed {seed}" for seed in (3, 1) for row in "abc"]


def test_shards_are_all_runs_and_none_twice(tmp_path):
    runs, _ = sweeps.planned(tmp_path, sweeps.spec_of("a", "b", "c"), seeds=(0, 1, 2))
    for count in (1, 2, 4, 20):
        parts = [share(runs, index, count) for index in range(1, count + 1)]
        assert sorted(run.name for part in parts for run in part) == sorted(run.name for run in runs)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_states_of_a_run(tmp_path):
    (run,), (dev, far) = sweeps.planned(tmp_path, sweeps.spec_of("a"), seeds=(0,), sets=("dev", "far"))

    def state():
        return state_of(run, (dev, far))

    assert str(state()) == "missing" and not state().done
    sweeps.write_log(run.folder, steps=40)
    with (run.folder / "log.jsonl").open("a") as log:
        log.write('{"unix_seconds": 3, "event": "tr')
    assert str(state()) == "interrupted at step 40" and state().step == 40
    sweeps.fail(run, "out of memory")
    assert str(state()) == "failed: out of memory"
    sweeps.finish(run, {dev: {"x": 2.0}})
    assert state().trained and state().missing == (far,) and not state().done
    (run.folder / "failure.json").unlink()
    assert str(state()) == "trained; not scored on far"
    sweeps.write_scores(scores_folder(run, far), {"x": 2.0, "y": None})
    assert str(state()) == "failed: far: files without scores: 1 (y: no utterance)" and not state().done
    sweeps.write_scores(scores_folder(run, far), {"x": 2.0, "y": 3.0})
    assert str(state()) == "done" and state().done
    # An old failure of what is done by now says nothing.
    sweeps.fail(run, "out of memory")
    assert str(state()) == "done" and state().reason is None


def test_the_command_of_a_run_gives_its_config(tmp_path):
    run = next(run for run in plan("losses", tmp_path / "sète 😀") if run.row == "+ time, si_sdr, perceptual")
    words = run.command()
    assert words[:4] == ["saf-jax", "train", "--config", "paper"] and words[6] == "--set"
    assert load_config("paper", words[7:]) == run.config


def test_last_entry_passes_over_what_is_damaged(tmp_path):
    assert last_entry(tmp_path) is None
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "loss": 0.5}\n[3]\n7\n\xff\n{"st')
    assert last_entry(tmp_path) == {"step": 2, "loss": 0.5}


def test_names_of_folders_are_short_enough_for_any_file_system(tmp_path):
    data = SweepData({}, (), {}, {}, (), tmp_path)
    row = Row("long", {"model.dense_dilations": list(range(1, 200)), "train.init_from": "a/b c" * 50})
    spec = Spec(rows=(row,), reference="long")
    (run,) = plan_runs(spec, "mine.yaml", Config(), {"long": row.set}, (0,), data, tmp_path, {})
    assert len(run.folder.name) < 120 and run.folder.parent == tmp_path / "runs"


@pytest.mark.parametrize("name", ["run.json", "summary.json", "per_file.csv"])
@pytest.mark.parametrize("content", [None, "", "null", "{}"])
def test_a_damaged_file_is_as_good_as_none(tmp_path, name, content):
    """It is made again, instead of ending every later call."""
    (run,), (dev,) = sweeps.planned(tmp_path, sweeps.spec_of("a"), seeds=(0,))
    sweeps.finish(run, {dev: {"x": 2.0}})
    scores = scores_folder(run, dev)
    path = (run.folder if name == "run.json" else scores) / name
    path.unlink() if content is None else path.write_text(content)
    state = state_of(run, (dev,))
    assert not state.done and state.reason is None
    assert state.trained == (name != "run.json") and state.missing == (() if name == "run.json" else (dev,))
    discard_damaged_scores(scores)
    assert (scores / "per_file.csv").is_file() == (name != "per_file.csv")
