import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from saf_jax.checkpoint import CONFIG_FILE, Checkpoints, load_run, read_run_config
from saf_jax.config import config_to_dict
from saf_jax.errors import UserError
from saf_jax.training_step import TrainState, init_state


def state_of(value, size=64):
    """A small state whose arrays all tell `value`."""
    empty = {field.name: {} for field in dataclasses.fields(TrainState)}
    told = dict(
        step=jnp.int32(value),
        params={"a": jnp.full((3, size), float(value)), "b": {"c": jnp.arange(size) + value}},
        optimizer=(jnp.int32(value), {"m": jnp.full(size, value / 2)}),
        learning_rate_scale=jnp.float32(0.5),
        skipped=jnp.int32(1),
    )
    return TrainState(**{**empty, **told})


def parts_of(value):
    """What a weights file takes of it."""
    return {"params": state_of(value).params}


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def checkpoints(tmp_path):
    opened = []

    def open_checkpoints(keep_best=2):
        opened.append(Checkpoints(tmp_path, keep_best))
        return opened[-1]

    yield open_checkpoints
    for one in opened:
        one.close()


def save(checkpoints, *steps):
    """Saves pairs of step and validation loss, one after another."""
    for step, loss in steps:
        if loss is not None:
            checkpoints.rate(step, -loss)
        checkpoints.save(step, state_of(step), {"step": step}, candidate=loss is not None)
    checkpoints.wait()


def damage(folder, kind="cut"):
    """Cuts the files of a checkpoint's arrays short, or takes away what describes it."""
    if kind == "metadata":
        (folder / "state" / "_METADATA").write_text("{")
        return
    if kind == "meta":
        (folder / "meta" / "metadata").write_text('{"step"')
        return
    files = [path for path in (folder / "state").rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_latest_and_the_best_are_kept(checkpoints):
    saved = checkpoints(keep_best=2)
    save(saved, (1, 0.5), (2, 0.4), (3, None), (4, 0.6), (5, 0.3), (6, None), (7, 0.9))
    assert saved.steps() == [2, 5, 7]
    save(saved, (8, 0.1))
    assert saved.steps() == [5, 8]
    save(saved, (9, None), (10, None))
    assert saved.steps() == [5, 8, 10]


def test_without_best_ones_only_the_latest_is_kept(checkpoints):
    saved = checkpoints(keep_best=0)
    save(saved, (1, 0.5), (2, 0.4), (3, 0.7))
    assert saved.steps() == [3]


def test_a_reopened_run_knows_its_latest_and_its_best(checkpoints):
    save(checkpoints(), (1, 0.5), (2, 0.4), (3, 0.6))
    again = checkpoints()
    step, state, meta = again.restore_newest(state_of(0))
    assert (step, meta) == (3, {"step": 3})
    assert_same(state, state_of(3))
    assert_same(again.restore_best(parts_of(0)), parts_of(2))
    save(again, (4, 0.45))
    assert again.steps() == [2, 4]


def test_a_new_run_has_nothing_to_restore(checkpoints):
    saved = checkpoints()
    assert saved.restore_newest(state_of(0)) is None
    with pytest.raises(UserError, match="holds no sound checkpoint: train first"):
        saved.restore_best(parts_of(0))


@pytest.mark.parametrize("kind", ["cut", "metadata", "meta"])
def test_a_damaged_newest_is_passed_over_and_replaced(checkpoints, tmp_path, caplog, kind):
    save(checkpoints(), (1, 0.3), (2, 0.4), (3, 0.6))
    damage(tmp_path / "checkpoints" / "3", kind)
    again = checkpoints()
    with caplog.at_level(logging.WARNING, "saf_jax"):
        step, state, _ = again.restore_newest(state_of(0))
    assert step == 2
    assert_same(state, state_of(2))
    warning = caplog.records[0].getMessage()
    assert warning.startswith("checkpoint 3 is damaged, passed over: ")
    assert "\n" not in warning
    assert len(warning) < 300
    # The run goes on from step 2 and comes by 3 again.
    assert [path.name.split("-")[0] for path in (tmp_path / "damaged").iterdir()] == ["3"]
    save(again, (3, 0.2))
    assert_same(again.restore_newest(state_of(0))[1], state_of(3))
    assert_same(checkpoints().restore_best(parts_of(0)), parts_of(3))


def test_a_damaged_best_falls_back_to_a_sound_one(checkpoints, tmp_path, caplog, capfd):
    save(checkpoints(), (1, 0.3), (2, 0.4), (3, 0.6))
    damage(tmp_path / "checkpoints" / "1")
    assert_same(checkpoints().restore_best(parts_of(0)), parts_of(2))
    # Nothing of the other reads that failed beside the first one.
    assert len(caplog.records) == 1
    assert capfd.readouterr().err == ""


def test_where_all_are_damaged_the_run_is_neither_continued_nor_lost(checkpoints, tmp_path):
    save(checkpoints(), (1, 0.3), (2, 0.4))
    for step in "12":
        damage(tmp_path / "checkpoints" / step)
    again = checkpoints()
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        again.restore_newest(state_of(0))
    with pytest.raises(UserError, match="holds no sound checkpoint"):
        again.restore_best(parts_of(0))
    assert again.steps() == [1, 2]


def test_a_checkpoint_is_kept_until_its_rating_is_known(checkpoints):
    saved = checkpoints(keep_best=1)
    for step in (1, 2, 3, 4):
        saved.save(step, state_of(step), {}, candidate=True)
        saved.wait()
    assert saved.steps() == [1, 2, 3, 4]
    for step, rating in ((1, 0.1), (2, 0.3), (3, 0.2)):
        saved.rate(step, rating)
    save(saved, (5, None))
    assert saved.steps() == [2, 4, 5]
    assert checkpoints().best_steps() == [2]


def test_reading_leaves_alone_what_a_running_training_is_writing(checkpoints, tmp_path):
    save(checkpoints(), (1, 0.3))
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert checkpoints().restore_newest(state_of(0))[0] == 1
    assert_same(checkpoints().restore_best(parts_of(0)), parts_of(1))
    assert unfinished.is_dir()
    # The next training clears up after the one that was killed.
    save(checkpoints(), (3, None))
    assert not unfinished.exists()


@pytest.mark.parametrize("devices", [1, 8])
def test_the_state_may_be_donated_as_soon_as_save_returns(checkpoints, devices):
    saved = checkpoints()
    change = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    mesh = jax.make_mesh((devices,), ("devices",), devices=jax.devices()[:devices])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(state_of(7, size=300_000), everywhere)
    wanted = jax.tree.map(lambda x: np.array(x, copy=True), state)
    saved.save(7, state, {})
    for _ in range(5):
        state = change(state)
    jax.block_until_ready(state)
    assert_same(saved.restore_newest(state_of(0, size=300_000))[1], wanted)


def run_folder(tmp_path, config, states, devices=1):
    """A run's folder as training leaves it, its state held on several devices."""
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config_to_dict(config)))
    saved = Checkpoints(tmp_path, 2)
    mesh = jax.make_mesh((devices,), ("devices",), devices=jax.devices()[:devices])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    for step, (variables, loss) in enumerate(states, 1):
        state = init_state(config, variables)
        saved.rate(step, -loss)
        saved.save(step, jax.device_put(state, everywhere), {}, candidate=True)
    saved.close()
    return tmp_path


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_load_run_gives_config_and_variables_on_one_device(tmp_path, norm):
    config = networks.least(norm=norm)
    first, second = networks.net_variables(config, 1), networks.net_variables(config, 2)
    folder = run_folder(tmp_path, config, [(first, 0.1), (second, 0.2)], devices=8)
    got_config, got = load_run(folder)
    assert got_config == config
    assert_same(got, first)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(got))


def test_the_folder_of_one_checkpoint_gives_that_one(tmp_path, monkeypatch):
    config = networks.least()
    best, last = networks.net_variables(config, 1), networks.net_variables(config, 2)
    folder = run_folder(tmp_path, config, [(best, 0.1), (last, 0.2)])
    steps = sorted((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for given, wanted in ((folder, best), (steps[0], best), (steps[1], last)):
        got_config, got = load_run(given)
        assert got_config == config
        assert_same(got, wanted)
    monkeypatch.chdir(folder / "checkpoints")
    assert_same(load_run(steps[1].name)[1], last)


@pytest.mark.parametrize("files", [(), ("state",)])
def test_a_damaged_checkpoint_that_was_named_is_not_replaced_by_another(tmp_path, files):
    config = networks.least()
    folder = run_folder(tmp_path, config, [(networks.net_variables(config), 0.1)])
    damaged = folder / "checkpoints" / "77"
    damaged.mkdir()
    for name in files:
        (damaged / name).mkdir()
    with pytest.raises(UserError, match="is no sound checkpoint") as error:
        load_run(damaged)
    assert str(error.value).startswith(f"{damaged}: ")
    assert f"or {folder} for the best" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_named_like_a_checkpoint_outside_a_run_is_none(tmp_path):
    folder = tmp_path / "checkpoints" / "12"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="is not the folder of a training run"):
        load_run(folder)


def test_a_checkpoint_of_another_network_is_no_weights(tmp_path):
    config = networks.least()
    folder = run_folder(tmp_path, config, [(networks.net_variables(config), 0.1)])
    (folder / CONFIG_FILE).write_text(json.dumps(config_to_dict(networks.least(width=8))))
    with pytest.raises(UserError) as error:
        load_run(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not the folder of a training run"),
        ("{", "is damaged"),
        ('{"model": {"layerz": 1}}', "did you mean model.layers"),
        ("[]", "must hold 'key: value' lines"),
    ],
)
def test_a_run_folder_that_cannot_be_used_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / CONFIG_FILE).write_text(content)
    for load in (read_run_config, load_run):
        with pytest.raises(UserError) as error:
            load(tmp_path)
        assert str(tmp_path) in str(error.value)
        assert message in str(error.value)


def test_a_run_without_a_checkpoint_is_told(tmp_path):
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config_to_dict(networks.least())))
    with pytest.raises(UserError, match="holds no checkpoint yet: let the training run on"):
        load_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]
