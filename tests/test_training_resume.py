"""Runs that are killed, run out of disk or find a damaged checkpoint end with the parameters of one that was not."""

import json
import random
import signal
import time

import jax
import numpy as np
import pytest
from training_runs import SMALL, end, end_all, newest, start, write_pairs

from saf_jax.config import load_config

# Everything that a checkpoint must hold is on; a checkpoint every other step.
SETTINGS = [
    *SMALL,
    "train.batch_size=4",
    "train.average_decay=0.9",
    "train.plateau_epochs=1",
    "train.validate_every=4",
    "train.log_every=2",
    "train.checkpoint_seconds=0",
    "train.keep_best=2",
]

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), count=5)


@pytest.fixture(autouse=True)
def none_is_left_behind():
    yield
    end_all()


def train(workdir, settings, timeout_seconds=300, **changes):
    status, _, err = end(start(workdir, settings, **changes), timeout_seconds)
    assert status == 0, err


def assert_same_end(settings, workdir, whole):
    """The newest checkpoints of two runs agree bit for bit, with all that the host remembers."""
    config = load_config("paper", settings)
    (step, state, meta), (other_step, other, other_meta) = newest(config, workdir), newest(config, whole)
    assert step == other_step == config.train.steps
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))
    assert meta == other_meta
    assert read_json(workdir / "ratings.json") == read_json(whole / "ratings.json")


def read_json(path):
    return json.loads(path.read_text())


def kill(process, workdir, seconds, *, in_save):
    """Kills a run so many seconds after its next checkpoint, or within the save after that; False if it ended."""
    folder = workdir / "checkpoints"

    def finished():
        return {path.name for path in folder.glob("*") if path.name.isdigit()}

    before, saved_time = finished(), None
    while process.poll() is None:
        if saved_time is None and finished() - before:
            saved_time = time.monotonic()
        late = saved_time is not None and time.monotonic() - saved_time > seconds
        if late and (not in_save or list(folder.glob("*tmp*"))):
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.001)
    return False


@pytest.mark.ci
def test_killed_while_saving(data, tmp_path):
    settings = [*SETTINGS, *data, "train.steps=10"]
    train(tmp_path / "whole", settings)
    assert kill(start(tmp_path / "run", settings), tmp_path / "run", 0, in_save=True)
    train(tmp_path / "run", settings)
    starts = [entry["step"] for entry in log_of(tmp_path / "run") if entry["event"] == "start"]
    assert len(starts) == 2
    assert 0 < starts[1] < 10
    assert_same_end(settings, tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_disk_full_while_saving(data, tmp_path):
    """A limit on the size of files stands for a full disk: the arrays of a checkpoint exceed it, all else does not."""
    settings = [*SETTINGS, *data, "train.steps=8"]
    train(tmp_path / "whole", settings)
    train(tmp_path / "run", [*SETTINGS, *data, "train.steps=4"])
    status, _, err = end(start(tmp_path / "run", settings, largest_file_bytes=16_000))
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "a checkpoint could not be saved" in last
    assert "Traceback" not in err
    train(tmp_path / "run", settings)
    assert [entry["step"] for entry in log_of(tmp_path / "run") if entry["event"] == "start"] == [0, 4, 4]
    assert_same_end(settings, tmp_path / "run", tmp_path / "whole")


def log_of(workdir):
    """Entries of a log; a kill may have cut a line short."""
    entries = []
    for line in (workdir / "log.jsonl").read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


@pytest.mark.slow
def test_soak_of_twenty_kills(data, tmp_path):
    """At random moments, every other time while a checkpoint is written; scores of files are under way meanwhile."""
    settings = [*SETTINGS, *data, "train.steps=1000", "train.score_files=2", "train.score_delay_steps=3"]
    settings += ["train.best_metric=si_sdr_db"]
    train(tmp_path / "whole", settings, timeout_seconds=1800)
    rng = random.Random(0)
    for kills in range(20):
        process = start(tmp_path / "run", settings)
        assert kill(process, tmp_path / "run", rng.uniform(0, 0.5), in_save=kills % 2 == 0), "ended before"
    train(tmp_path / "run", settings, timeout_seconds=1800)
    assert len([entry for entry in log_of(tmp_path / "run") if entry["event"] == "start"]) == 21
    assert_same_end(settings, tmp_path / "run", tmp_path / "whole")
