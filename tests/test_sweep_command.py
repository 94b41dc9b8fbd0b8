"""`saf-jax sweep`, as a person starts it: tiny runs, interrupted, shared between machines, failing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sweeps
import yaml
from pairs import write_narrow_pairs

from saf_jax.cli import build_parser, main
from saf_jax.sweep_command import _plan

pytest.importorskip("pesq")

ROOT = Path(__file__).parent.parent


def sweep(*words, cwd):
    """Starts the command in a group of processes of its own."""
    command = [sys.executable, "-m", "saf_jax", "sweep", *map(str, words)]
    # The group, so that the test can end the sweep with its runs as a power cut would.
    return subprocess.Popen(
        command, cwd=cwd, env={**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process):
    """Status, what it printed, what it complained of."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pairs and a spec of two rows."""
    folder = tmp_path_factory.mktemp("sweeps")
    write_narrow_pairs(folder / "pairs")
    sweeps.write_spec(folder / "tiny.yaml", set=sweeps.TINY | data_of(folder))
    return folder


def data_of(folder):
    sides = [(f"{part}_{side}", side) for part in ("train", "valid") for side in ("clean", "noisy")]
    return {f"data.{key}": [str(folder / "pairs" / side)] for key, side in sides}


@pytest.fixture(scope="module")
def whole(place):
    """The sweep done in one go: its folder and what it printed."""
    status, out, err = finished(sweep("tiny.yaml", "--workdir", "whole", cwd=place))
    assert status == 0, err
    return place / "whole", out


def results(folder, name="tiny"):
    """What of a table does not depend on when and where its runs were made."""
    table = json.loads((folder / name / "table.json").read_text())
    rows = [(row["name"], row["parameters"], row["gmac_per_second"], row["scores"]) for row in table["rows"]]
    return rows, table["noisy"], table["sets"], table["failed"], table["missing"]


@pytest.mark.ci
def test_it_leaves_a_table_and_a_page_and_again_it_does_nothing(place, whole, capsys):
    folder, out = whole
    rows, noisy, sets, failed, missing = results(folder)
    assert [row[0] for row in rows] == ["mask", "bias"] and not failed and not missing
    assert sets[0]["files"] == 3 and noisy[sets[0]["name"]]["wb_pesq"] > 1
    assert "mask" in out and str(folder / "tiny" / "index.html") in out
    for name in ("table.csv", "table.txt", "table.md", "index.html"):
        assert (folder / "tiny" / name).stat().st_size > 200
    made = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/**/*") if path.is_file()}
    assert len([path for path in made if path.name == "run.json"]) == 2
    words = [str(place / "tiny.yaml"), "--workdir", str(folder)]
    capsys.readouterr()
    assert main(["sweep", *words, "--dry-run"]) == 0
    assert "2 of 2 runs are done" in capsys.readouterr().out
    assert main(["sweep", *words]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/**/*") if path.is_file()} == made


@pytest.mark.slow
def test_killed_and_shared_between_machines_it_ends_the_same(place, whole):
    words = ("tiny.yaml", "--workdir", "parts", "--shard")
    first = sweep(*words, "1/2", cwd=place)
    until = time.monotonic() + 120
    while not any('"step": 60' in log.read_text() for log in place.glob("parts/runs/*/log.jsonl")):
        assert first.poll() is None and time.monotonic() < until, finished(first)
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    finished(first)
    assert not list(place.glob("parts/runs/*/run.json"))

    status, out, err = finished(sweep(*words, "1/2", cwd=place))
    assert status == 0, err
    assert "not there: " in out
    status, _, err = finished(sweep(*words, "2/2", cwd=place))
    assert status == 0, err
    assert results(place / "parts") == results(whole[0])


@pytest.mark.ci
def test_a_run_that_fails_is_named_and_the_others_go_on(place, whole):
    rows = [{"name": "wild", "set": {"train.learning_rate": 1e30}}, {"name": "mask"}]
    sweeps.write_spec(place / "wild.yaml", set=sweeps.TINY | data_of(place), rows=rows, reference="mask")
    status, out, err = finished(sweep("wild.yaml", "--workdir", whole[0], cwd=place))
    assert status == 1
    scores, _, _, failed, missing = results(whole[0], "wild")
    assert len(failed) == 1 and failed[0].startswith("wild, seed 0: ") and not missing
    # The other row's run is that of the sweep before.
    assert scores[1] == results(whole[0])[0][0]
    assert failed[0] in out and "Traceback" not in err


def test_recordings_that_rows_and_the_base_name_are_taken(place, tmp_path, monkeypatch):
    """Before those of --audio and SAF_AUDIO, and before the budget's settings."""
    base = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    clean, noisy = (str(place / "pairs" / side) for side in ("clean", "noisy"))
    base["data"] = {"train_clean": [clean], "train_noisy": [noisy], "valid_clean": [clean], "valid_noisy": [noisy]}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    rows = [{"name": "plain"}, {"name": "own", "set": {"data.train_clean": [noisy], "data.crop_seconds": 0.7}}]
    spec = sweeps.write_spec(tmp_path / "own.yaml", base=str(tmp_path / "base.yaml"), rows=rows, set={})
    monkeypatch.setenv("SAF_AUDIO", str(tmp_path))
    args = build_parser("sweep").parse_args(["sweep", str(spec), "--workdir", str(tmp_path / "w")])
    plan = _plan(args)
    plain, own = (next(run for run in plan.runs if run.row == name).config.data for name in ("plain", "own"))
    assert (plain.train_clean, plain.train_noisy, plain.valid_noisy) == ((clean,), (noisy,), (noisy,))
    assert (own.train_clean, own.train_noisy, own.crop_seconds) == ((noisy,), (noisy,), 0.7)
    assert plain.crop_seconds != 0.7 and [item.name for item in plan.data.sets] == ["valid"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["nonsense", "--workdir", "w"], "nonsense"),
        (["phase", "--workdir", "w", "--budget", "huge"], "huge"),
        (["phase", "--workdir", "w", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["phase", "--workdir", "w", "--shard", "3/2"], "--shard 3/2: write it as I/N"),
        (["phase", "--workdir", "w", "--seeds", "1,1"], "names a seed twice"),
        (["phase", "--workdir", "w", "--seeds", "one"], "--seeds one: write whole numbers"),
        (["phase", "--workdir", "w", "--audio", "nowhere"], "--audio=nowhere: no such folder"),
        (["phase", "--workdir", "w", "--set", "model.streams=[complex]"], "is what the rows of phase differ in"),
        (["phase", "--workdir", "w", "--set", "train.seed=3"], "name the seeds with --seeds"),
        (["phase", "--workdir", "w", "--test", "far", "nowhere", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAF_AUDIO", raising=False)
    assert main(["sweep", *words]) not in (0, None)
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
