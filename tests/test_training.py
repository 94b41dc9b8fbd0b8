"""Training end to end: it learns, resumes where it ended, and refuses what it cannot continue."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from training_runs import ROOT, SMALL, newest, write_pairs

from saf_jax import audio, parallel, training, training_run
from saf_jax.checkpoint import load_run, read_run_config
from saf_jax.config import config_to_dict, load_config
from saf_jax.data import pipeline
from saf_jax.enhancement import Enhancer
from saf_jax.errors import UserError
from saf_jax.metrics import si_sdr_db
from saf_jax.run_report import write_run_report
from saf_jax.training import train_and_evaluate
from saf_jax.training_run import LOG_FILE, HostState
from saf_jax.training_step import init_state

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.ci
def test_resumed_run_equals_uninterrupted_run(data, tmp_path):
    settings = [*SMALL, *data, "train.schedule=plateau", "train.validate_every=2", "train.optimizer=muon"]
    whole = load_config("paper", [*settings, "train.steps=6"])
    assert train_and_evaluate(whole, tmp_path / "whole", quiet=True)["step"] == 6
    half = load_config("paper", [*settings, "train.steps=3"])
    assert train_and_evaluate(half, tmp_path / "parts", quiet=True)["step"] == 3
    assert train_and_evaluate(whole, tmp_path / "parts", quiet=True)["step"] == 6

    step_a, state_a, _ = newest(whole, tmp_path / "whole")
    step_b, state_b, _ = newest(whole, tmp_path / "parts")
    assert step_a == step_b == 6
    for a, b in zip(
        jax.tree.leaves((state_a.params, state_a.optimizer)), jax.tree.leaves((state_b.params, state_b.optimizer))
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    start = jax.tree.leaves(jax.jit(lambda: init_state(whole))().params)
    assert any(np.any(np.asarray(a) != b) for a, b in zip(jax.tree.leaves(state_a.params), start))


@pytest.mark.ci
def test_a_training_by_the_clock_ends_with_its_schedule(data, tmp_path):
    settings = [
        *SMALL,
        *data,
        "train.schedule=cosine",
        "train.steps=1000000",
        "train.minutes=0.05",
        "train.validate_every=100000",
        "train.log_every=1",
    ]
    config = load_config("paper", settings)
    result = train_and_evaluate(config, tmp_path, quiet=True)
    assert not result["preempted"] and 0 < result["step"] < 1000000 and result["valid_loss"] is not None
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if line["event"] == "train"]
    assert rates[0] == pytest.approx(5e-4)
    assert rates == sorted(rates, reverse=True) and rates[-1] < 2.5e-4
    # Its time is over: called again, it does no further step.
    again = train_and_evaluate(config, tmp_path, quiet=True)
    assert (again["step"], again["preempted"]) == (result["step"], False)


class Pending:
    """A result of a step of which one sees whether it was waited for."""

    def __init__(self, value):
        self.value, self.waited_for = value, False

    def block_until_ready(self):
        self.waited_for = True
        return self

    def __array__(self, *_, **__):
        return np.asarray(self.block_until_ready().value)


def test_log_holds_losses_and_speed(data, tmp_path, monkeypatch):
    map_over_devices, next_batch, waiting = parallel.map_over_devices, training._Loop._next_batch, []

    def with_pending_results(function, **settings):
        step = map_over_devices(function, **settings)

        def run(*args):
            state, result = step(*args)
            return state, result | {"loss": Pending(result["loss"])}

        return run if settings.get("donate_state") else step

    def watched(loop):
        waiting.append(sum(not result["loss"].waited_for for result in loop._results))
        return next_batch(loop)

    monkeypatch.setattr(parallel, "map_over_devices", with_pending_results)
    monkeypatch.setattr(training._Loop, "_next_batch", watched)
    config = load_config("paper", [*SMALL, *data, "train.steps=10", "train.validate_every=5"])
    train_and_evaluate(config, tmp_path, quiet=True)
    # The host stays near the devices: a run that is asked to stop does so after few steps.
    assert max(waiting) == 2
    entries = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["start", "train", "valid", "train", "valid", "end"]
    train = entries[3]
    assert train["step"] == 10 and train["skipped"] == 0 and train["audio_seconds_per_second"] > 0
    assert train["loss"] == pytest.approx(0.5 * train["complex"] + 0.5 * train["magnitude"], rel=1e-5)
    assert np.isfinite(entries[-1]["valid_loss"])


def test_workdir_of_another_config_is_refused(data, tmp_path, monkeypatch):
    config = load_config("paper", [*SMALL, *data, "train.steps=1"])
    train_and_evaluate(config, tmp_path, quiet=True)
    other = load_config("paper", [*SMALL, *data, "train.steps=2", "model.local_window=5", "train.learning_rate=0.1"])
    closed = []
    monkeypatch.setattr(pipeline.Batches, "close", lambda batches: closed.append(batches))
    with pytest.raises(UserError, match=r"model\.local_window \(3 there, 5 now\).*train\.learning_rate") as caught:
        train_and_evaluate(other, tmp_path, quiet=True)
    assert "train.steps" not in str(caught.value)
    assert len(closed) == 1


def test_a_start_that_failed_keeps_no_workdir(data, tmp_path):
    wrong = load_config("paper", [*SMALL, *data, "train.steps=1", "train.init_from=saf-tinyy"])
    with pytest.raises(UserError, match="saf-tinyy"):
        train_and_evaluate(wrong, tmp_path, quiet=True)
    train_and_evaluate(load_config("paper", [*SMALL, *data, "train.steps=1", "train.seed=3"]), tmp_path, quiet=True)
    assert read_run_config(tmp_path).train.seed == 3


def test_batch_size_that_the_devices_cannot_share(data, tmp_path):
    config = load_config("paper", [*SMALL, *data, "train.batch_size=12"])
    with pytest.raises(UserError, match="8 or 16"):
        train_and_evaluate(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["train_clean", "train_noisy", "valid_noisy"])
def test_missing_folder_is_named_before_anything_is_written(data, tmp_path, missing):
    config = load_config("paper", [*SMALL, *data, f"data.{missing}={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match="nowhere"):
        train_and_evaluate(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("log_every", [7])
def test_run_that_never_gets_a_finite_gradient_stops_and_names_the_files(data, tmp_path, monkeypatch, log_every):
    # Such a learning rate takes the parameters beyond float32 in the first step; every later gradient is NaN.
    settings = ["train.steps=100", "train.validate_every=100", f"train.log_every={log_every}"]
    config = load_config("paper", [*SMALL, *data, *settings, "train.learning_rate=1e38"])
    named = []
    describe = pipeline.describe_examples
    monkeypatch.setattr(pipeline, "describe_examples", lambda *args: named.extend(args[1]) or describe(*args))
    with pytest.raises(UserError, match="20 steps in a row gave no usable gradient"):
        train_and_evaluate(config, tmp_path, quiet=True)
    assert ".wav" in (tmp_path / "bad_batch.txt").read_text()
    # Steps 2 to 21, of 8 examples each, however often the host looks at them.
    assert named == list(range(8, 21 * 8))
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert sum(line.get("skipped", 0) for line in lines) == max(21, log_every) - 1


def test_a_lower_rate_is_taken_where_no_step_was_usable(data, tmp_path):
    """The advice that such a run ends with can be followed in the same folder."""
    settings = [*SMALL, *data, "train.steps=30", "train.validate_every=100", "train.log_every=30"]
    nothing = load_config("paper", [*settings, "train.learning_rate=1e38", "train.explosion_factor=0"])
    open_log = tmp_path / LOG_FILE
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(nothing)))
    open_log.write_text(json.dumps({"unix_seconds": 1.0, "event": "train", "step": 21, "skipped": 21}) + "\n")
    assert train_and_evaluate(load_config("paper", [*settings, "train.steps=1"]), tmp_path, quiet=True)["step"] == 1


def test_a_good_step_ends_a_row_of_bad_ones_within_a_report(data, tmp_path, monkeypatch):
    """Rows of 19 are let through and rows of 20 are not, wherever the reports fall."""
    given_up = []
    monkeypatch.setattr(training._Loop, "_give_up", lambda _, steps: given_up.append(list(steps)))
    for rows, stops in (((19, 19), False), ((19, 20, 5), True)):
        loop = object.__new__(training._Loop)
        loop._run = SimpleNamespace(host=HostState(), log=lambda *_, **__: None)
        loop._progress, loop._gap = SimpleNamespace(advance=lambda _: {}), SimpleNamespace(add=lambda *_: None)
        given_up.clear()
        usable = [flag for row in rows for flag in [*[False] * row, True]]
        for start in range(0, len(usable), 25):
            loop._results = [{"usable": flag, "loss": 1.0} for flag in usable[start : start + 25]]
            loop._step = start + len(loop._results)
            loop._report()
        assert given_up == ([list(range(21, 41))] if stops else [])


def test_early_stop_ends_after_validations_without_improvement(data, tmp_path, capsys):
    # Steps too small for float32 to see: no validation is better than the first.
    settings = ["train.steps=50", "train.validate_every=1", "train.early_stop=2", "train.learning_rate=1e-30"]
    config = load_config("paper", [*SMALL, *data, *settings])
    result = train_and_evaluate(config, tmp_path, quiet=True)
    assert (result["step"], result["stopped_early"], result["preempted"]) == (3, True, False)
    events = [json.loads(line)["event"] for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert events.count("valid") == 3 and events[-1] == "stopped_early"
    assert "finished, stopped early, step 3" in write_run_report(tmp_path).read_text()
    again = train_and_evaluate(config, tmp_path, quiet=True)
    assert (again["step"], again["stopped_early"]) == (3, True)


def test_what_checkpoints_are_judged_by_must_stay_the_same(data, tmp_path, monkeypatch):
    """Other validation recordings, or another metric: the best checkpoint would be chosen among numbers that differ."""
    settings = [*SMALL, *data, "train.validate_every=1", "train.schedule=constant"]
    valid = tmp_path / "valid"
    for side in ("clean", "noisy"):
        shutil.copytree(
            next(item for item in data if item.startswith(f"data.valid_{side}=")).partition("=")[2], valid / side
        )
    settings += [f"data.valid_clean={valid / 'clean'}", f"data.valid_noisy={valid / 'noisy'}"]
    train_and_evaluate(load_config("paper", [*settings, "train.steps=1"]), tmp_path / "run", quiet=True)
    longer = load_config("paper", [*settings, "train.steps=2"])
    before = audio.read(valid / "noisy" / "0.wav")
    audio.write(valid / "noisy" / "0.wav", before._replace(samples=0.5 * before.samples))
    with pytest.raises(UserError, match=r"data\.valid_noisy differ from the checkpoint's"):
        train_and_evaluate(longer, tmp_path / "run", quiet=True)
    audio.write(valid / "noisy" / "0.wav", before)
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "resolved_metric", lambda _: "wb_pesq")
        with pytest.raises(
            UserError, match=r"judged by valid_loss, now it would be by wb_pesq: remove the package pesq"
        ):
            train_and_evaluate(longer, tmp_path / "run", quiet=True)
    assert train_and_evaluate(longer, tmp_path / "run", quiet=True)["step"] == 2
    # The folder tells what the run is by now.
    assert read_run_config(tmp_path / "run").train.steps == 2


def test_a_checkpoint_of_an_earlier_version_goes_on():
    run = SimpleNamespace(batches=SimpleNamespace(set_state=lambda _: None), companions=[], _check_judge=lambda _: None)
    host = {**dataclasses.asdict(HostState(valid_loss=0.5)), "bad_steps": 3}
    training_run.Run.restore_meta(run, {"data": {}, "host": host, "companions": {}}, 10, None)
    assert run.host.bad_steps == [8, 9, 10] and run.host.valid_loss == 0.5


def test_plateau_halves_after_the_patience():
    host = HostState()
    factors = [host.learning_rate_factor(loss, 2) for loss in (1.0, 0.9, 0.95, 0.91, 0.92, 0.8)]
    assert factors == [1, 1, 1, 0.5, 1, 1]
    assert host.lowest_loss == 0.8


@pytest.mark.slow
def test_one_real_utterance_is_learnt_by_heart(audio_root, tmp_path):
    """train.py as a command on one device: the SI-SDR of its one utterance rises by more than 10 dB."""
    source = audio_root / "dev"
    speech = audio.read_mono(sorted((source / "clean").glob("*.flac"))[0], 16000)[16000:32000]
    noise = audio.read_mono(sorted((source / "noise").glob("*.flac"))[0], 16000)[:16000]
    noisy = speech + noise * np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (5 / 20)
    for kind, samples in (("clean", speech), ("noisy", noisy)):
        audio.write(tmp_path / kind / "one.wav", audio.Audio(samples, 16000, subtype="FLOAT"))
    settings = [f"data.{part}_{kind}={tmp_path / kind}" for part in ("train", "valid") for kind in ("clean", "noisy")]
    settings += ["model.width=16", "model.layers=1", "model.frequency_stride=4", "model.attention_kernel=5"]
    settings += [
        "model.fold_first=true",
        "model.dense_dilations=[1]",
        "data.crop_seconds=1",
        "train.batch_size=1",
        "train.steps=340",
        "train.learning_rate=5e-3",
        "train.schedule=cosine",
        "train.warmup_steps=10",
        "train.validate_every=340",
    ]
    command = [
        sys.executable,
        ROOT / "train.py",
        "--config",
        "paper",
        "--workdir",
        tmp_path / "run",
        "--set",
        *settings,
    ]
    variables = {key: os.environ[key] for key in os.environ.keys() - {"XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"}}
    result = subprocess.run(command, env=variables, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert "step 340 of 340" in result.stdout
    enhanced = Enhancer(*load_run(tmp_path / "run"))(noisy, 16000)
    assert si_sdr_db(speech, enhanced) - si_sdr_db(speech, noisy) > 10
