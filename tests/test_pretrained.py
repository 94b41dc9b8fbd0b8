import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from descent import real_mixtures
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import saf_jax
from saf_jax import pretrained
from saf_jax.config import DataConfig, config_to_dict
from saf_jax.errors import UserError
from saf_jax.growth import with_layers_of
from saf_jax.metrics import si_sdr_db, wb_pesq
from saf_jax.model.net import SAFNet
from saf_jax.pretrained import (
    FORMAT,
    average_weights,
    initial_variables,
    load_weights,
    save_weights,
    shipped_path,
    shipped_weights,
)
from saf_jax.training_step import init_state

CONFIG = networks.least(norm="batch")


@pytest.fixture
def variables():
    return networks.net_variables(CONFIG)


@pytest.fixture
def weights(tmp_path, variables):
    path = tmp_path / "w.safetensors"
    save_weights(path, CONFIG, variables, {"licence": "CC BY 4.0"})
    return path


def metadata_of(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def test_round_trip(weights, variables):
    config, loaded = load_weights(weights)
    assert config == CONFIG
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    spectrum = networks.spectrum(1, 5, CONFIG.stft.bins)
    apply = jax.jit(SAFNet(config.model).apply)
    np.testing.assert_array_equal(apply(loaded, spectrum), apply(variables, spectrum))


def test_the_mean_counts_each_as_often_as_it_is_named(tmp_path, weights, variables):
    moved = tmp_path / "moved.safetensors"
    save_weights(moved, CONFIG, jax.tree.map(lambda leaf: leaf + 0.75, variables))
    config, mean = average_weights([weights, moved, weights])
    assert config == CONFIG
    assert jax.tree.structure(mean) == jax.tree.structure(variables)
    jax.tree.map(lambda got, leaf: np.testing.assert_allclose(got, leaf + 0.25, rtol=1e-6, atol=1e-6), mean, variables)
    jax.tree.map(np.testing.assert_array_equal, average_weights([weights, weights])[1], variables)


def test_the_mean_with_what_the_network_was_grown_from(tmp_path, weights, variables):
    deeper = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, layers=CONFIG.model.layers + 1))
    trained = jax.tree.map(lambda leaf: leaf + 0.5, networks.net_variables(deeper))
    save_weights(tmp_path / "deeper", deeper, trained)
    config, mean = average_weights([tmp_path / "deeper", weights])
    assert config == deeper
    half = jax.tree.map(lambda a, b: (a + b) / 2, trained, with_layers_of(variables, trained))
    jax.tree.map(lambda got, leaf: np.testing.assert_allclose(got, leaf, rtol=1e-6, atol=1e-6), mean, half)
    with pytest.raises(UserError, match=r"is another network than .*; differing: model\.layers"):
        average_weights([weights, tmp_path / "deeper"])


def test_no_mean_of_different_networks(tmp_path, weights):
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, attention_kernel=5))
    save_weights(tmp_path / "other", other, networks.net_variables(other))
    with pytest.raises(UserError, match=r"other: is another network than .*; differing: model\.attention"):
        average_weights([weights, tmp_path / "other"])


def test_device_arrays_are_saved_too(tmp_path, variables):
    save_weights(tmp_path / "a", CONFIG, jax.tree.map(jnp.asarray, variables))
    jax.tree.map(np.testing.assert_array_equal, saf_jax.load_weights(str(tmp_path / "a"))[1], variables)


def test_the_file_tells_what_it_is(weights):
    entries = metadata_of(weights)
    assert entries["format"] == FORMAT
    assert entries["licence"] == "CC BY 4.0"
    assert entries["saf_jax_version"] == saf_jax.__version__
    assert json.loads(entries["config"]) == config_to_dict(CONFIG)


def test_no_folder_of_the_training_machine_goes_with_the_weights(tmp_path, variables):
    config = dataclasses.replace(
        CONFIG,
        data=DataConfig(
            train_clean=("/home/me/clean",),
            train_noise=("/home/me/noise",),
            train_noise_weights=(1.0,),
            valid_clean=("/home/me/valid",),
            cache_folder="/home/me/cache",
            crop_seconds=1.25,
        ),
        train=dataclasses.replace(CONFIG.train, init_from="/home/me/run", freeze_norm=True, seed=7),
    )
    save_weights(tmp_path / "a", config, variables)
    assert b"/home" not in (tmp_path / "a").read_bytes()
    loaded = load_weights(tmp_path / "a")[0]
    assert (loaded.model, loaded.data.crop_seconds, loaded.train.seed) == (config.model, 1.25, 7)


@pytest.mark.parametrize("name", shipped_weights())
def test_what_is_shipped_names_no_folders(name):
    tree = json.loads(metadata_of(shipped_path(name))["config"])
    assert not any(value for value in tree["data"].values() if isinstance(value, (str, list)))
    assert tree["train"]["init_from"] in ("", *shipped_weights())


def test_metadata_cannot_take_the_place_of_the_config(tmp_path, variables):
    save_weights(tmp_path / "a", CONFIG, variables, {"config": "{}", "format": "mine"})
    assert load_weights(tmp_path / "a")[0] == CONFIG


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    with pytest.raises(Exception, match=r"."):
        save_weights(tmp_path / "a", CONFIG, {"params": {"kernel": "no array"}})
    assert list(tmp_path.iterdir()) == []


def changed(weights, arrays=None, **entries):
    """The file with other arrays or metadata; None takes an entry away."""
    metadata = {**metadata_of(weights), **entries}
    save_file(
        arrays or load_file(weights), weights, {key: value for key, value in metadata.items() if value is not None}
    )


def damage(weights, kind):
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "cut in its head":
        weights.write_bytes(weights.read_bytes()[:50])
    elif kind == "empty":
        weights.write_bytes(b"")
    elif kind == "words":
        weights.write_text("these are no weights " * 20)
    elif kind == "foreign":
        save_file(load_file(weights), weights)
    elif kind == "newer format":
        changed(weights, format="saf_jax weights 99")
    elif kind == "no config":
        changed(weights, config=None)
    elif kind == "config cut":
        changed(weights, config=metadata_of(weights)["config"][:40])
    elif kind == "unknown key":
        changed(weights, config='{"model": {"layerz": 2}}')
    elif kind == "bad value":
        changed(weights, config=json.dumps(config_to_dict(CONFIG)).replace('"layers": 1', '"layers": -1'))
    elif kind == "another config":
        changed(weights, config=json.dumps(config_to_dict(networks.least(width=8))))
    elif kind == "an array less":
        arrays = load_file(weights)
        arrays.pop(next(iter(arrays)))
        changed(weights, arrays)
    elif kind == "half precision":
        changed(weights, {key: value.astype(np.float16) for key, value in load_file(weights).items()})
    elif kind == "nan":
        changed(weights, {key: value * np.float32(np.nan) for key, value in load_file(weights).items()})


BAD = {
    "cut": "is no weights file or is damaged",
    "cut in its head": "is no weights file or is damaged",
    "empty": "is no weights file or is damaged",
    "words": "is no weights file or is damaged",
    "foreign": "is not a weights file that this version reads (no format named; needed: saf_jax weights 1)",
    "newer format": "is not a weights file that this version reads (saf_jax weights 99; needed",
    "no config": "its config is damaged",
    "config cut": "its config is damaged",
    "unknown key": "did you mean model.layers",
    "bad value": "model.layers=-1",
    "another config": "its arrays do not fit its config",
    "an array less": "its arrays do not fit its config",
    "half precision": "its arrays do not fit its config",
    "nan": "NaN",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(weights, kind):
    damage(weights, kind)
    with pytest.raises(UserError) as error:
        load_weights(weights)
    message = str(error.value)
    assert str(weights) in message
    assert BAD[kind] in message
    assert "\n" not in message


def test_an_unknown_name_lists_the_shipped_ones(tmp_path, monkeypatch, weights):
    with pytest.raises(
        UserError, match=r"^nothing: no such run folder or weights file, nor shipped weights \(shipped: "
    ):
        load_weights("nothing")
    folder = tmp_path / "package"
    (folder / "weights").mkdir(parents=True)
    shutil.copy(weights, folder / "weights" / "saf-mine.safetensors")
    monkeypatch.setattr(pretrained, "__file__", str(folder / "pretrained.py"))
    assert pretrained.shipped_weights() == ["saf-mine"]
    assert load_weights("saf-mine")[0] == CONFIG
    with pytest.raises(UserError, match=r"\(shipped: saf-mine\)"):
        load_weights("nothing")
    with pytest.raises(UserError, match="no weights come with this version: name a training run or a weights file"):
        load_weights(None)
    shutil.copy(weights, folder / "weights" / f"{pretrained.DEFAULT}.safetensors")
    assert load_weights(None)[0] == CONFIG


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    config = networks.least()
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    save_weights(path, config, networks.net_variables(config))
    return path


def starting_from(path, **changes):
    config = networks.least(**changes)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=str(path), learning_rate=1e-5))


def test_training_starts_from_given_weights(weights_file):
    config = starting_from(weights_file)
    state = init_state(config, initial_variables(config))
    wanted = networks.net_variables(networks.least())["params"]
    jax.tree.map(np.testing.assert_array_equal, state.params, wanted)
    assert int(state.step) == 0
    assert initial_variables(networks.least()) is None


def test_weights_of_another_network_are_no_start(weights_file):
    with pytest.raises(UserError, match=r"is another network; differing: model\.width \(4 there, 6 now\)$"):
        initial_variables(starting_from(weights_file, width=6))
    with pytest.raises(UserError, match="no such run folder or weights file"):
        initial_variables(starting_from("nowhere"))


def test_a_causal_network_starts_from_one_that_looks_ahead(tmp_path):
    """Where the dropped taps were 0 both give the same."""
    config = networks.config(band_bias=True, frequency_stride=2)
    causal = networks.config(band_bias=True, frequency_stride=2, causal=True)
    variables = networks.net_variables(config)

    def blind(leaf):
        if leaf.ndim != 3:
            return leaf
        kernel = np.array(leaf)
        kernel[leaf.shape[0] // 2 + 1 :] = 0
        return kernel

    blinded = jax.tree.map(blind, variables)
    spectrum = networks.spectrum(2, 30, config.stft.bins)
    wanted = jax.jit(SAFNet(config.model).apply)(blinded, spectrum)
    got = jax.jit(SAFNet(causal.model).apply)(pretrained.without_lookahead(variables), spectrum)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * float(np.abs(wanted).max()))

    path = tmp_path / "ahead.safetensors"
    save_weights(path, config, variables)
    start = dataclasses.replace(causal, train=dataclasses.replace(causal.train, init_from=str(path)))
    jax.tree.map(np.testing.assert_array_equal, initial_variables(start), pretrained.without_lookahead(variables))
    back = dataclasses.replace(config, train=start.train)
    save_weights(path, causal, variables)
    with pytest.raises(UserError, match=r"differing: model\.causal \(True there, False now\)"):
        initial_variables(back)


def test_each_default_is_shipped_and_does_what_it_is_taken_for():
    assert {pretrained.DEFAULT, pretrained.DEFAULT_CAUSAL} <= set(pretrained.shipped_weights())
    assert not load_weights(pretrained.DEFAULT)[0].model.causal
    assert load_weights(pretrained.DEFAULT_CAUSAL)[0].model.causal


# WB-PESQ and SI-SDR of 16 mixtures of 2 s of the development recordings, -5 to 25 dB (unprocessed: 1.789 and 9.99), by
# these weights as they are meant to be used: a change of the code around them must not change them.
SHIPPED_SCORES = {
    "saf": (2.384, 12.74),
    "saf-plus": (2.587, 12.57),
    "saf-small": (2.286, 12.77),
    "saf-tiny": (2.274, 12.65),
    "saf-tiny-causal": (2.168, 11.89),
}


@pytest.mark.parametrize("name", shipped_weights())
def test_shipped_weights_still_do_what_they_did(name, audio_root):
    pytest.importorskip("pesq")
    clean, noisy = (0.1 * signals for signals in real_mixtures(audio_root, 32000))
    enhanced = np.asarray(saf_jax.enhance(*load_weights(name), noisy, sample_rate_hz=16000))
    pesq, si_sdr = (
        np.mean([metric(one.astype(float), other.astype(float)) for one, other in zip(clean, enhanced, strict=True)])
        for metric in (wb_pesq, si_sdr_db)
    )
    assert (pesq, si_sdr) == (
        pytest.approx(SHIPPED_SCORES[name][0], abs=0.02),
        pytest.approx(SHIPPED_SCORES[name][1], abs=0.1),
    )
