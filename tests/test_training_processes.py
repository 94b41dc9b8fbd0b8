"""Training on one device, on eight, and in two processes of four: the same gradient, the same parameters."""

import json
import signal
import time

import jax
import networks
import numpy as np
import pytest
from training_runs import SMALL, end, end_all, newest, start, start_together, write_pairs

from saf_jax.config import load_config
from saf_jax.pretrained import save_weights
from saf_jax.training import train_and_evaluate

# No clipping: Adam's first moment after one step then is the gradient times a known factor.
SETTINGS = [*SMALL, "train.batch_size=16", "train.gradient_clip=0", "train.validate_every=10", "train.log_every=5"]

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Settings that name pairs, and weights to start from.

    Not new weights: their biases start at 0 and are 0.01 at most after 20 steps; a rounding error of 1e-8 that takes an
    activation past the corner of its PReLU then grows to more than 1e-4 of that.
    """
    folder = tmp_path_factory.mktemp("pairs")
    config = load_config("paper", SMALL)
    save_weights(folder / "start.safetensors", config, networks.net_variables(config))
    return [*write_pairs(folder, count=5), f"train.init_from={folder / 'start.safetensors'}"]


@pytest.fixture(autouse=True)
def none_is_left_behind():
    yield
    end_all()


def train(kind, workdir, settings):
    if kind == "8 devices":
        train_and_evaluate(load_config("paper", settings), workdir, quiet=True)
        return
    processes = start_together(workdir, settings, 2, 4) if kind == "2 x 4 devices" else [start(workdir, settings)]
    for process in processes:
        status, _, err = end(process)
        assert status == 0, err


def first_gradient(state, config):
    (adam,) = [part for part in state.optimizer if hasattr(part, "mu")]
    return jax.tree.map(lambda leaf: np.asarray(leaf) / (1 - config.train.beta1), adam.mu)


def assert_agree(got, wanted, tolerance):
    """Each array agrees to a part of its largest value."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        error = np.abs(np.asarray(a) - np.asarray(b)).max()
        assert error <= tolerance * np.abs(np.asarray(b)).max(), (jax.tree_util.keystr(path), error)


@pytest.mark.parametrize(
    ("kinds", "calls"),
    [
        pytest.param(("8 devices", "2 x 4 devices"), (1,), marks=pytest.mark.ci),
        # The second call resumes the first.
        pytest.param(("1 device", "8 devices", "2 x 4 devices"), (1, 20), marks=pytest.mark.slow),
    ],
)
def test_devices_and_processes_do_not_change_the_result(data, tmp_path, kinds, calls):
    gradients, params = {}, {}
    for kind in kinds:
        for steps in calls:
            settings = [*SETTINGS, *data, f"train.steps={steps}"]
            config = load_config("paper", settings)
            train(kind, tmp_path / kind, settings)
            step, state, _ = newest(config, tmp_path / kind)
            assert step == steps
            params[kind] = state.params
            if steps == 1:
                gradients[kind] = first_gradient(state, config)
    for kind in kinds[1:]:
        assert_agree(gradients[kind], gradients[kinds[0]], 1e-5)
        assert_agree(params[kind], params[kinds[0]], 1e-4)
    logs = {
        kind: [json.loads(line) for line in (tmp_path / kind / "log.jsonl").read_text().splitlines()]
        for kind in gradients
    }
    # One process writes: the log has each line once.
    assert [entry["event"] for entry in logs["2 x 4 devices"]] == [entry["event"] for entry in logs[kinds[0]]]
    assert logs["2 x 4 devices"][0]["devices"] == "8 x cpu"
    losses = [[entry["valid_loss"] for entry in log if entry["event"] == "valid"] for log in logs.values()]
    assert losses[0]
    np.testing.assert_allclose(losses[1:], [losses[0]] * (len(kinds) - 1), rtol=1e-4)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all(data, tmp_path):
    settings = [*SETTINGS, *data, "train.steps=100000", "train.validate_every=100000"]
    processes = start_together(tmp_path / "run", settings, 2, 4)
    log = tmp_path / "run" / "log.jsonl"
    for _ in range(1200):
        if log.exists() and '"train"' in log.read_text():
            break
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    sent = time.monotonic()
    for process in processes:
        status, _, err = end(process, 60)
        assert status == 0, err
    assert time.monotonic() - sent < 30
    step, _, meta = newest(load_config("paper", settings), tmp_path / "run")
    assert json.loads(log.read_text().splitlines()[-1])["event"] == "preempted"
    assert json.loads(log.read_text().splitlines()[-1])["step"] == step == meta["data"]["next_batch"]


@pytest.mark.ci
def test_processes_end_together_by_the_clock(data, tmp_path):
    settings = [*SETTINGS, *data, "train.steps=100000", "train.minutes=0.25", "train.schedule=cosine"]
    settings += ["train.log_every=2", "train.validate_every=100000"]
    for process in start_together(tmp_path / "run", settings, 2, 4):
        status, _, err = end(process)
        assert status == 0, err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["event"] == "end" and log[-1]["step"] < 100000
    rates = [entry["learning_rate"] for entry in log if entry["event"] == "train"]
    assert rates[-1] < 0.5 * rates[0]
    _, _, meta = newest(load_config("paper", settings), tmp_path / "run")
    assert 10 < meta["host"]["seconds"] < 60


@pytest.mark.ci
def test_the_command_leaves_a_report_and_tensorboards_files(data, tmp_path):
    settings = [*SMALL, *data, "train.steps=1"]
    status, out, err = end(start(tmp_path / "run", settings, arguments=["--tensorboard"]))
    assert status == 0, err
    assert "step 1 of 1" in out and str(tmp_path / "run" / "report.html") in out
    assert "finished, step 1" in (tmp_path / "run" / "report.html").read_text()
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_without_a_cluster_distributed_is_refused_in_one_line(data, tmp_path):
    status, _, err = end(start(tmp_path / "run", [*SMALL, *data, "train.steps=1"], arguments=["--distributed"]))
    assert status == 2 and err.startswith("error: the processes could not be joined") and "--coordinator" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "run").exists()
