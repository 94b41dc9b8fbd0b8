"""What the README and the other documents say can be done as they say."""

import re
import shlex
from pathlib import Path

import jax
import networks
import numpy as np
import pytest

from saf_jax.cli import build_parser
from saf_jax.config import config_folder, load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "saf_jax/weights/*.md", "configs/*.yaml")
    for path in sorted(ROOT.glob(pattern))
]


def commands(name):
    """All indented command lines (in configs those of the heading), continued lines joined."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".yaml"):
        text = re.sub("^# ?", "  ", text, flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", "", text)
    # Of alternatives the first.
    text = re.sub(r"\[([^]|\n]*) \| [^]\n]*\]", r"\1", text)
    found = re.findall(r"^ {4,}((?:saf-jax|python (?:train|eval)\.py) .*)$", text, re.MULTILINE)
    lines = (re.split("  [#(]", line)[0].split(" | ")[0].split(" > ")[0].split(" & ")[0].strip() for line in found)
    # Options that may be left out are checked too; what is left to the reader is no command.
    lines = (re.sub(r"\[(--[^]]*)\]", r"\1", line).replace(" N", " 2") for line in lines)
    return [line for line in lines if "..." not in line]


@pytest.mark.parametrize("line", dict.fromkeys(line for name in DOCUMENTS for line in commands(name)))
def test_commands_parse_and_name_what_exists(line):
    words = shlex.split(line)
    words = words[1:] if words[0] == "saf-jax" else [Path(words[1]).stem, *words[2:]]
    args = build_parser(words[0]).parse_args(words)
    if getattr(args, "config", None):
        load_config(config_folder() / Path(args.config).with_suffix(".yaml").name, args.set)


def test_there_are_commands_to_check():
    assert len(commands("README.md")) > 5 and len(commands("configs/paper.yaml")) > 0
    assert sum(len(commands(name)) for name in DOCUMENTS) > 60


def test_python_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # The example runs operation by operation, each of which is compiled.
    config = networks.least()
    code = code.replace('saf_jax.load_config("paper", overrides=["model.layers=2"])', "given")
    samples = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    names = {"samples": samples, "jax": jax, "given": config}
    exec(code, names)
    assert names["enhanced"].shape == samples.shape
    assert names["estimate"].shape == names["spectrum"].shape


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(".md")])
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert (ROOT / name).parent.joinpath(target).exists(), target


def test_table_of_fields_names_fields():
    model = load_config("paper").model
    table = README.split("| field | values |")[1].split("\n\n")[0]
    for name in re.findall(r"`(?:model\.)?(\w+)`", table):
        assert hasattr(model, name), name
