"""Comparing results."""

import json
from pathlib import Path

import numpy as np
import pytest

from saf_jax.cli import main
from saf_jax.compare import compare, difference
from saf_jax.errors import UserError
from saf_jax.evaluation_summary import summarise
from saf_jax.metrics import METRICS
from saf_jax.results import NOISY_METRICS, FileResult, read_results, write_json, write_per_file


def make(folder: Path, pesq: dict[str, float], scale: str = "standard", noisy: float = 1.5) -> Path:
    """A results folder with these values of WB-PESQ; the other metrics are 1."""
    values = dict.fromkeys((*METRICS, *NOISY_METRICS), 1.0) | {"noisy_wb_pesq": noisy}
    files = [FileResult(file, values | {"wb_pesq": value}) for file, value in pesq.items()]
    folder.mkdir()
    write_per_file(folder, files)
    write_json(folder / "summary.json", {"name": folder.name, "composite_scale": scale, **summarise(files, {})})
    return folder


def spread(shift: float, count: int = 40, noise: float = 0.0) -> dict[str, float]:
    """Values that differ widely between files, shifted; `noise` differs between calls by the shift's seed."""
    base = np.random.default_rng(0).uniform(1.5, 3.5, count)
    return {f"f{i}": float(v) for i, v in enumerate(base + shift + np.random.default_rng(1).normal(0, noise, count))}


def test_a_small_steady_gain_is_found_where_the_files_differ_widely(tmp_path, capsys):
    a, b = make(tmp_path / "a", spread(0.0)), make(tmp_path / "b", spread(0.05, noise=0.03))
    found = difference(read_results(a), read_results(b), "wb_pesq")
    assert found.verdict == "better" and found.files == 40 and found.better > found.worse
    assert found.low < 0.05 < found.high and found.high - found.low < 0.04
    # Unpaired, the intervals of the two means overlap by far.
    low, high = read_results(b).summary["intervals"]["wb_pesq"]
    assert high - low > 0.2
    assert difference(read_results(b), read_results(a), "wb_pesq").verdict == "worse"
    assert main(["compare", str(a), str(b)]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("WB-PESQ"))
    assert line.split()[1:4] == [f"+{value:.3f}" for value in (found.mean, found.low, found.high)]
    assert line.endswith("better") and "b - a" in printed


def test_chance_is_not_called_a_gain(tmp_path):
    a, b = make(tmp_path / "a", spread(0.0)), make(tmp_path / "b", spread(0.0, noise=0.2))
    assert difference(read_results(a), read_results(b), "wb_pesq").verdict == "no clear difference"
    one = make(tmp_path / "one", spread(1.0, count=1))
    assert difference(read_results(a), read_results(one), "wb_pesq").verdict == "too few files"


def test_only_common_files_count_and_differences_of_the_test_set_are_said(tmp_path):
    a = make(tmp_path / "a", spread(0.0, count=10))
    b = make(tmp_path / "b", spread(0.5, count=12), noisy=1.6)
    c = make(tmp_path / "c", spread(-0.5, count=10))
    found = compare([read_results(folder) for folder in (a, b, c)])
    assert [other["common_files"] for other in found["others"]] == [10, 10]
    assert [other["differences"]["wb_pesq"]["verdict"] for other in found["others"]] == ["better", "worse"]
    assert any("2 files are in only one of a and b" in line for line in found["warnings"])
    assert any("10 files" in line and "test set" in line for line in found["warnings"])
    assert found["others"][1]["differences"]["wb_pesq"]["mean"] == pytest.approx(-0.5)


def test_results_of_one_name_are_told_apart(tmp_path, capsys):
    (tmp_path / "x").mkdir()
    a, b = make(tmp_path / "x" / "enhanced", spread(0.0)), make(tmp_path / "enhanced", spread(0.1))
    assert main(["compare", str(a), str(b)]) == 0
    assert f"{b} - {a}" in capsys.readouterr().out


def test_json_is_strict(tmp_path, capsys):
    a, b = make(tmp_path / "a", spread(0.0, count=1)), make(tmp_path / "b", spread(0.1, count=1))
    assert main(["compare", "--json", str(a), str(b)]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert found["others"][0]["differences"]["wb_pesq"]["low"] is None


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = read_results(make(tmp_path / "a", spread(0.0)))
    divided = read_results(make(tmp_path / "b", spread(0.0), scale="divided"))
    strangers = read_results(make(tmp_path / "c", {"other": 2.0}))
    for others, words in (([], "two results"), ([divided], "composite-scale"), ([strangers], "no scored file")):
        with pytest.raises(UserError, match=words):
            compare([a, *others])


@pytest.mark.parametrize("change, said", [(1e-6, False), (0.01, True)])
def test_rounding_makes_no_other_test_set(tmp_path, change, said):
    a, b = make(tmp_path / "a", spread(0.0)), make(tmp_path / "b", spread(0.1), noisy=1.5 + change)
    assert bool(compare([read_results(a), read_results(b)])["warnings"]) == said


def test_json_holds_the_means_too(tmp_path, capsys):
    a, b = make(tmp_path / "a", spread(0.0)), make(tmp_path / "b", spread(0.5))
    assert main(["compare", "--json", str(a), str(b)]) == 0
    means = json.loads(capsys.readouterr().out)["means"]
    assert means["b"]["wb_pesq"] - means["a"]["wb_pesq"] == pytest.approx(0.5) and means["a"]["covl"] == 1.0
