import dataclasses

import pytest
import yaml

from saf_jax.config import (
    Config,
    config_differences,
    config_folder,
    config_from_dict,
    config_to_dict,
    fill_dataclass,
    load_config,
    override,
)
from saf_jax.errors import UserError


def test_the_papers_config_is_the_default():
    assert load_config("paper") == Config()


def test_shipped_configs_load_and_pass_their_checks():
    paths = sorted(config_folder().glob("*.yaml"))
    assert config_folder() / "paper.yaml" in paths
    for path in paths:
        name = path.relative_to(config_folder()).with_suffix("").as_posix()
        assert load_config(name) == load_config(path)


def test_a_file_states_only_what_it_changes(tmp_path):
    (tmp_path / "a.yaml").write_text("model:\n  layers: 2\n  tcn_dilations: [1, 2]\ntrain:\n  learning_rate: 1e-3\n")
    config = load_config(tmp_path / "a.yaml")
    assert config.model == dataclasses.replace(Config().model, layers=2, tcn_dilations=(1, 2))
    assert config.train == dataclasses.replace(Config().train, learning_rate=1e-3)
    assert config.stft == Config().stft


@pytest.mark.parametrize("text", ["", "# nothing\n", "model:\n"])
def test_an_empty_file_or_section_is_the_default(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    assert load_config(tmp_path / "a.yaml") == Config()


@pytest.mark.parametrize(
    ("item", "section", "key", "value"),
    [
        ("model.layers=2", "model", "layers", 2),
        (" train.learning_rate = 5e-4", "train", "learning_rate", 5e-4),
        ("train.learning_rate=1", "train", "learning_rate", 1.0),
        ("train.checkpoint_seconds=.inf", "train", "checkpoint_seconds", float("inf")),
        ("model.causal=true", "model", "causal", True),
        ("model.norm=batch", "model", "norm", "batch"),
        ("model.frequency_stride=4", "model", "frequency_stride", 4),
        ("model.tcn_dilations=[]", "model", "tcn_dilations", ()),
        ("model.tcn_dilations=", "model", "tcn_dilations", ()),
        ("model.tcn_dilations=3", "model", "tcn_dilations", (3,)),
        ("data.train_clean=[a, b]", "data", "train_clean", ("a", "b")),
        ("data.train_clean=a=b", "data", "train_clean", ("a=b",)),
        ("mixing.snr_db=[0, 5]", "mixing", "snr_db", (0.0, 5.0)),
    ],
)
def test_overrides(item, section, key, value):
    got = getattr(getattr(load_config("paper", [item]), section), key)
    assert got == value
    assert type(got) is type(value)


def test_the_last_override_wins_over_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {layers: 2}")
    assert load_config(tmp_path / "a.yaml", ["model.layers=3", "model.layers=4"]).model.layers == 4


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": {"layer": 2}}, "unknown key model.layer: did you mean model.layers?"),
        ({"train": {"batchsize": 2}}, "unknown key train.batchsize: did you mean train.batch_size?"),
        ({"modle": {}}, "unknown key modle: did you mean model?"),
        ({"model": {"qqq": 1}}, "unknown key model.qqq: known: streams, width, layers"),
        ({1: 2}, "unknown key 1: known: stft, model"),
        ({"model": {"layers": "two"}}, "model.layers='two': must be a whole number"),
        ({"model": {"layers": 2.0}}, "model.layers=2.0: must be a whole number"),
        ({"model": {"layers": True}}, "model.layers=True: must be a whole number"),
        ({"model": {"layers": None}}, "model.layers=None: must be a whole number"),
        ({"model": {"causal": 1}}, "model.causal=1: must be true or false"),
        ({"model": {"norm": "none"}}, "model.norm='none': must be one of layer, batch, group, instance"),
        ({"model": {"layer_kind": "rnn"}}, "model.layer_kind='rnn': must be one of saf, transformer"),
        ({"model": {"frequency_stride": 3}}, "model.frequency_stride=3: must be one of 2, 4"),
        ({"model": {"tcn_dilations": [1, "x"]}}, "model.tcn_dilations='x': must be a whole number"),
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate='fast': must be a number"),
        ({"train": {"learning_rate": True}}, "train.learning_rate=True: must be a number"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate=nan: must be a finite number"),
        ({"train": {"learning_rate": "nan"}}, "train.learning_rate=nan: must be a finite number"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate=inf: must be a finite number"),
        ({"data": {"crop_seconds": float("inf")}}, "data.crop_seconds=inf: must be a finite number"),
        ({"data": {"cache_gb": float("-inf")}}, "data.cache_gb=-inf: must be a finite number"),
        ({"mixing": {"snr_db": [float("-inf"), 20]}}, "mixing.snr_db=-inf: must be a finite number"),
        ({"data": {"cache_folder": 3}}, "data.cache_folder=3: must be text"),
        ({"model": [1]}, "model must hold 'key: value' lines, not [1]"),
        (["model"], "the file must hold 'key: value' lines, not ['model']"),
    ],
)
def test_wrong_keys_and_types_are_named(tmp_path, tree, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: {message}")


# Each check of a value, with what its message must name.
BAD_VALUES = [
    ("stft.sample_rate_hz=0", "stft.sample_rate_hz=0: must be positive"),
    ("stft.hop_samples=0", "stft.hop_samples=0: must divide stft.window_samples=320"),
    ("stft.hop_samples=-160", "stft.hop_samples=-160"),
    ("stft.hop_samples=150", "stft.hop_samples=150"),
    ("stft.hop_samples=320", "at least twice"),
    ("stft.window_samples=0", "stft.window_samples=0"),
    ("stft.window_samples=-320", "stft.window_samples=-320"),
    (["stft.window_samples=75", "stft.hop_samples=25"], "stft.window_samples=75: must be even"),
    ("stft.compression=0", "stft.compression=0.0: must lie in (0, 1]"),
    ("stft.compression=1.1", "stft.compression=1.1"),
    ("model.width=0", "model.width=0: must be at least 1"),
    ("model.heads=0", "model.heads=0: must be at least 1"),
    ("model.feedforward_factor=0", "model.feedforward_factor=0: must be at least 1"),
    (
        ["model.layer_kind=transformer", "model.causal=true"],
        "model.causal=true: model.layer_kind=transformer attends to the whole signal: set model.causal=false, or "
        "model.layer_kind=saf",
    ),
    ("model.norm_groups=0", "model.norm_groups=0: must be at least 1"),
    ("model.layers=-1", "model.layers=-1: must be at least 0"),
    ("model.heads=5", "model.heads=5: must divide model.width=64"),
    (["model.norm=group", "model.norm_groups=5"], "model.norm_groups=5: must divide model.width=64"),
    ("model.attention_kernel=4", "model.attention_kernel=4: must be odd from 3 to 21, or 0"),
    ("model.attention_kernel=1", "model.attention_kernel=1"),
    ("model.attention_kernel=23", "model.attention_kernel=23"),
    ("model.attention_kernel=-3", "model.attention_kernel=-3"),
    ("model.local_window=2", "model.local_window=2: must be 1, 3, 5 or 7 bands, or 0"),
    ("model.local_window=9", "model.local_window=9"),
    ("model.tcn_kernel=2", "model.tcn_kernel=2: must be odd"),
    ("model.tcn_kernel=-1", "model.tcn_kernel=-1"),
    ("model.tcn_dilations=[1, 0]", "model.tcn_dilations=[1, 0]: dilations must be at least 1"),
    ("model.dense_dilations=[0]", "model.dense_dilations=[0]: dilations must be at least 1"),
    ("train.seed=-1", "train.seed=-1: must not be negative"),
    ("train.seed=4294967296", "train.seed=4294967296: must be below 4294967296"),
    ("train.weight_decay=-1", "train.weight_decay=-1.0: must not be negative"),
    ("data.crop_seconds=0", "data.crop_seconds=0.0: must be positive"),
    ("data.crop_seconds=0.01", "data.crop_seconds=0.01: must be at least a window, 0.02 s"),
    ("data.workers=-1", "data.workers=-1: must not be negative"),
    ("data.cache_gb=-1", "data.cache_gb=-1.0: must not be negative"),
    (["data.train_noise=[a]", "data.train_noise_weights=[1, 2]"], "data.train_noise_weights=[1.0, 2.0]"),
    (["data.train_noise=[a]", "data.train_noise_weights=[-1]"], "none negative"),
    (["data.train_noise=[a]", "data.train_noise_weights=[0]"], "at least one above 0"),
    ("mixing.snr_db=[5, 0]", "mixing.snr_db=[5.0, 0.0]: must be two numbers, the lower bound first"),
    ("mixing.snr_db=[5]", "mixing.snr_db=[5.0]: must be two numbers"),
    ("mixing.babble=1.5", "mixing.babble=1.5: is a probability"),
    ("mixing.speed=-0.1", "mixing.speed=-0.1: is a probability"),
    ("mixing.most_noises=0", "mixing.most_noises=0: must be at least 1"),
    (["mixing.babble=0.6", "mixing.generated=0.6"], "mixing.babble and mixing.generated"),
    ("mixing.early_ms=-1", "mixing.early_ms and mixing.equaliser_db must not be negative"),
    ("mixing.equaliser_db=-1", "mixing.early_ms and mixing.equaliser_db must not be negative"),
    ("mixing.speed_factor=[0.1, 1]", "mixing.speed_factor=[0.1, 1.0]: must lie in [0.25, 4]"),
    ("mixing.band_limit_hz=[10, 3000]", "mixing.band_limit_hz=[10.0, 3000.0]: must be at least 100"),
    ("mixing.clipping_part=[0, 0.6]", "mixing.clipping_part=[0.0, 0.6]: must lie in [0, 0.5)"),
    (["loss.complex=0", "loss.magnitude=0"], "loss: all weights are 0"),
    (["loss.complex=0", "loss.magnitude=0", "loss.metric=1"], "loss.metric: validation has no such term"),
    (["loss.intelligibility=1", "stft.sample_rate_hz=8000"], "stft.sample_rate_hz=8000 must be at least 8600"),
    ("loss.complex=-1", "loss.complex=-1.0: must not be negative"),
    ("train.batch_size=0", "train.batch_size=0: must be at least 1"),
    ("train.plateau_epochs=0", "train.plateau_epochs=0: must be at least 1"),
    ("train.steps=-1", "train.steps"),
    ("train.epochs=-1", "epochs"),
    ("train.validate_every=-1", "validate_every"),
    ("train.warmup_steps=-1", "warmup_steps"),
    ("train.keep_best=-1", "keep_best"),
    ("train.epochs=0", "train.steps and train.epochs are both 0"),
    ("train.learning_rate=0", "train.learning_rate=0.0: must be positive"),
    ("train.beta1=1", "train.beta1=1.0: must lie in [0, 1)"),
    ("train.beta2=-0.1", "train.beta2=-0.1: must lie in [0, 1)"),
    ("train.gradient_clip=-1", "train.gradient_clip=-1.0: must not be negative"),
]


@pytest.mark.parametrize(("items", "message"), BAD_VALUES, ids=lambda value: str(value) if "=" in str(value) else "")
def test_values_that_do_not_fit_are_named(items, message):
    with pytest.raises(UserError) as error:
        load_config("paper", [items] if isinstance(items, str) else items)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("item", ["model.layers", "layers=2", "=", "model.layers:2"])
def test_an_override_of_another_form_is_named(item):
    with pytest.raises(UserError, match=r"write it as section\.key=value"):
        load_config("paper", [item])


def test_an_override_of_an_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match=r"--set: unknown key model\.layres: did you mean model\.layers"):
        load_config("paper", ["model.layres=2"])


def test_an_override_that_is_no_yaml_is_named():
    with pytest.raises(UserError, match=r"--set model.layers=\[: the value is not YAML"):
        load_config("paper", ["model.layers=["])


def test_an_unknown_config_names_those_that_come_with_the_package():
    with pytest.raises(
        UserError, match=r"^papr: no such config file, nor is it one that comes with the package \(.*paper.*\)$"
    ):
        load_config("papr")


@pytest.mark.parametrize(
    ("content", "message"), [(b"a: [", "is not YAML"), (b"\xff\xfe\x00", "cannot be read"), (b"\x00", "is not YAML")]
)
def test_a_file_that_is_no_yaml_is_named(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "bad.yaml")
    assert str(error.value).startswith(f"{tmp_path / 'bad.yaml'}: {message}")
    assert "\n" not in str(error.value)


def test_a_folder_is_no_config_and_hides_none(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"{tmp_path}: is a folder, no config file"):
        load_config(tmp_path)
    (tmp_path / "paper").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("paper").model.layers == 6


@pytest.mark.parametrize(
    ("text", "line"), [("train: {seed: 1}\nstft: {}\ntrain: {steps: 5}", 3), ("train:\n  seed: 1\n  seed: 2", 3)]
)
def test_a_key_that_stands_twice_is_no_riddle(tmp_path, text, line):
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"twice\.yaml: line {line} has the key (train|seed) a second time"):
        load_config(tmp_path / "twice.yaml")


def test_dict_round_trip_and_hash():
    config = load_config("paper", ["model.layers=2", "data.train_clean=[a, b]"])
    again = config_from_dict(yaml.safe_load(yaml.safe_dump(config_to_dict(config))))
    assert again == config
    assert hash(again) == hash(config)


def test_differences_name_both_values():
    a, b = Config(), load_config("paper", ["model.layers=2", "train.seed=1"])
    assert config_differences(a, a) == []
    assert config_differences(a, b) == ["model.layers (6 there, 2 now)", "train.seed (0 there, 1 now)"]


def test_any_frozen_dataclass_is_filled_and_mistakes_are_named():
    @dataclasses.dataclass(frozen=True)
    class Menu:
        dishes: tuple[str, ...] = ()
        guests: int = 2

    assert fill_dataclass(Menu(), {"dishes": ["soup"]}, "menu.yaml") == Menu(("soup",), 2)
    assert fill_dataclass(Menu(guests=5), {}, "menu.yaml").guests == 5
    with pytest.raises(UserError, match=r"menu\.yaml.*gests.*guests"):
        fill_dataclass(Menu(), {"gests": 3}, "menu.yaml")
    with pytest.raises(UserError, match=r"menu\.yaml.*guests"):
        fill_dataclass(Menu(), {"guests": "many"}, "menu.yaml")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.layers = 3


@pytest.mark.parametrize(
    "changes", [["model.norm=layer", "train.init_from=saf-plus"], ["model.norm=batch", "train.init_from="]]
)
def test_only_a_batch_norm_that_has_averages_can_be_frozen(changes):
    with pytest.raises(UserError, match=r"train\.freeze_norm.*init_from"):
        load_config("saf_plus", ["train.freeze_norm=true", *changes])
    assert load_config("saf_plus", ["train.freeze_norm=true"]).train.freeze_norm


def test_overrides_are_a_list():
    with pytest.raises(UserError, match=r"model\.layers=2: overrides are a list"):
        load_config("paper", overrides="model.layers=2")


def test_an_empty_value_takes_an_inherited_name_away():
    assert load_config("saf_plus").train.init_from == "saf-small"
    assert load_config("saf_plus", ["train.init_from="]).train.init_from == ""


def test_override_checks_even_without_changes():
    broken = dataclasses.replace(Config(), model=dataclasses.replace(Config().model, heads=5))
    with pytest.raises(UserError, match=r"model\.heads=5"):
        override(broken, [])


@pytest.mark.parametrize(
    "items",
    [
        ["model.width=30", "model.heads=3"],
        ["model.width=30", "model.local_window=0", "model.norm_groups=5"],
    ],
)
def test_what_does_not_apply_is_not_asked_for(items):
    assert load_config("paper", items).model.width == 30
