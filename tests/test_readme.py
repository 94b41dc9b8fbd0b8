"""What the README says can be done as it says."""

import re
import shlex
from pathlib import Path

import jax
import networks
import numpy as np
import pytest

import saf_jax
from saf_jax.cli import build_parser
from saf_jax.config import config_folder, load_config
from saf_jax.pretrained import save_weights

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands():
    """All indented command lines, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", README)
    found = re.findall(r"^    ((?:saf-jax|python (?:train|eval)\.py) .*)$", text, re.MULTILINE)
    return [line.split("  #")[0].strip() for line in found]


@pytest.mark.parametrize("line", commands())
def test_commands_parse_and_name_what_exists(line):
    words = shlex.split(line)
    words = words[1:] if words[0] == "saf-jax" else [Path(words[1]).stem, *words[2:]]
    args = build_parser(words[0]).parse_args(words)
    if getattr(args, "config", None):
        load_config(config_folder() / Path(args.config).with_suffix(".yaml").name, args.set)


def test_there_are_commands_to_check():
    assert len(commands()) > 5


def test_python_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # The example runs operation by operation, each of which is compiled.
    config = networks.least()
    spectrum = jax.numpy.zeros((1, 4, config.stft.bins), jax.numpy.complex64)
    variables = jax.jit(saf_jax.SAFNet(config.model).init)(jax.random.key(0), spectrum)
    save_weights("weights.safetensors", config, variables)
    code = code.replace("runs/paper", "weights.safetensors")
    code = code.replace('saf_jax.load_config("paper", overrides=["model.layers=2"])', "given")
    samples = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    names = {"samples": samples, "jax": jax, "given": config}
    exec(code, names)
    assert names["enhanced"].shape == samples.shape
    assert names["estimate"].shape == names["spectrum"].shape


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_table_of_fields_names_fields():
    model = load_config("paper").model
    table = README.split("| field | values |")[1].split("\n\n")[0]
    for name in re.findall(r"`(?:model\.)?(\w+)`", table):
        assert hasattr(model, name), name
