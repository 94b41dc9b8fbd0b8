"""What a training costs: plans that follow from measured steps, and a bare step that is the one of the training."""

import dataclasses
import json

import jax
import networks
import pytest
import yaml

from saf_jax import train_cost
from saf_jax.cli import main
from saf_jax.config import Config, DataConfig, TrainConfig, config_to_dict
from saf_jax.info import count_parameters

CONFIG = dataclasses.replace(
    networks.least(), data=DataConfig(crop_seconds=0.5), train=TrainConfig(batch_size=16, epochs=3)
)


@pytest.fixture(scope="module")
def cost():
    return train_cost.train_cost(CONFIG, examples=100, measured_steps=2)


def test_plan_follows_from_the_measured_step(cost):
    assert cost["parameters"] == count_parameters(networks.net_variables(CONFIG))
    assert (cost["devices"], cost["batch_per_device"], cost["audio_seconds_per_step"]) == (8, 2, 8.0)
    # 100 examples are 6.25 batches of 16: the seventh is filled up from the next epoch.
    assert (cost["steps_per_epoch"], cost["steps"], cost["epochs"]) == (7, 21, 3.0)
    assert cost["hours"] == pytest.approx(21 * cost["seconds_per_step"] / 3600)
    assert cost["audio_hours"] == pytest.approx(21 * 8 / 3600)
    assert cost["audio_seconds_per_second"] == pytest.approx(8 / cost["seconds_per_step"])
    assert 0 < cost["memory_gb"] < cost["memory_limit_gb"]
    assert cost["largest_batch"] % 8 == 0 and cost["largest_batch"] > 16


def test_largest_batch_by_proportion():
    memory = {"state": 1.0, "batch": 0.5, "work": 7.5}
    # 0.9 * 20 - 1 = 17 GB for examples of 1 GB each, on 4 devices; in parts of 3 or 1.
    assert train_cost._largest_batch(memory, 20.0, 8, 4, 1) == 68
    assert train_cost._largest_batch(memory, 20.0, 8, 4, 3) == 60
    assert train_cost._largest_batch(memory, 1.0, 8, 4, 1) == 0


def test_a_training_by_the_clock_takes_no_more_steps_than_fit():
    for minutes, steps in ((0, 1000), (1, 120), (100, 1000)):
        assert train_cost._planned_steps(TrainConfig(steps=1000, minutes=minutes), None, 0.5) == steps
    assert train_cost._planned_steps(TrainConfig(minutes=1), None, 0.5) is None
    assert train_cost._planned_steps(TrainConfig(minutes=1, epochs=3), 10, 0.5) == 30


def test_bare_step_trains():
    step = train_cost.BareStep(CONFIG)
    before = jax.device_get(step.state.params)
    step.run()
    step.run()
    assert int(step.state.step) == 2 and int(step.state.skipped) == 0
    after = jax.device_get(step.state.params)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)))


def test_command_plans_for_other_devices(tmp_path, capsys, monkeypatch, cost):
    monkeypatch.setattr(train_cost, "restart_with_huge_pages", lambda: None)
    asked = {}

    def planned(config, **how):
        asked.update(how, config=config)
        return cost

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config_to_dict(CONFIG)))))
    with monkeypatch.context() as patch:
        patch.setattr(train_cost, "train_cost", planned)
        assert main(["train-cost", "--config", str(path), "--examples", "100", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == cost
        assert asked == {"config": CONFIG, "devices": None, "examples": 100, "measured_steps": 5}
        assert main(["train-cost", "--config", str(path), "--examples", "100"]) == 0
    text = capsys.readouterr().out
    for part in ("7 steps", "21 steps (3.0 epochs)", "2 examples of 16 on each", "GB a device"):
        assert part in text
    for arguments, message in ((["--devices", "5"], "use 15 or 20"), (["--devices", "0"], "must be at least 1")):
        assert main(["train-cost", "--config", str(path), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_unknown_length_is_said(cost):
    unknown = dict.fromkeys(("steps_per_epoch", "steps", "epochs", "hours_per_epoch", "hours", "audio_hours"))
    text = train_cost._text({**cost, **unknown, "memory_limit_gb": None, "largest_batch": None})
    assert "give --examples N" in text and "would fit" not in text and "one epoch" not in text


def test_shape_of_the_synthetic_batch():
    config = Config(data=DataConfig(crop_seconds=0.1), train=TrainConfig(batch_size=3))
    batch = train_cost.synthetic_batch(config)
    assert {key: value.shape for key, value in batch.items()} == {
        "noisy": (3, 1600),
        "clean": (3, 1600),
        "samples": (3,),
    }
    assert (batch["samples"] == 1600).all()
