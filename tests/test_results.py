"""Results folders: what is written is what is read, and damage is told."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saf_jax.errors import UserError
from saf_jax.evaluation_summary import summarise
from saf_jax.metrics import METRICS
from saf_jax.results import NOISY_METRICS, FileResult, read_per_file, read_results, write_json, write_per_file

names = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=20)
values = st.dictionaries(st.sampled_from((*METRICS, *NOISY_METRICS)), st.floats(-100, 100).map(lambda x: round(x, 6)))
results = st.builds(
    FileResult,
    file=names,
    values=values,
    input_snr_db=st.none() | st.floats(-50, 50),
    noise_kind=st.none() | st.sampled_from(["stationary", "impulsive"]),
    seconds=st.floats(0, 1e5),
    trimmed_samples=st.integers(0, 1000),
    failures=st.dictionaries(st.sampled_from(["file", *METRICS]), names),
    metric_seconds=st.floats(0, 100),
    fingerprint=st.text("0123456789abcdef", min_size=16, max_size=16),
)


@settings(deadline=None, max_examples=50)
@given(files=st.lists(results, max_size=5, unique_by=lambda item: item.file))
def test_what_is_written_is_read(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    conditions = {item.file: {"noise": 'bus, "quoted"', "snr_db": "2.5"} for item in files[::2]}
    write_per_file(folder, files, conditions)
    read, known = read_per_file(folder)
    assert sorted(read, key=lambda item: item.file) == sorted(files, key=lambda item: item.file)
    assert known == conditions


def test_json_is_strict_at_any_depth(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [1.0, (math.inf,)], "c": {"d": -math.inf, 5: "é"}})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "a": None, "b": [1.0, [None]], "c": {"d": None, "5": "é"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("wb_pesq", "pesq", 1),
        lambda text: text.replace("1.25", "a lot"),
        lambda text: text[: len(text) // 2 + 60],
        lambda text: "",
    ],
    ids=["column", "number", "cut off", "empty"],
)
def test_damaged_tables_are_named(damage, tmp_path):
    write_per_file(tmp_path, [FileResult("f", {"wb_pesq": 1.25}), FileResult("g", {"wb_pesq": 1.5})])
    write_json(tmp_path / "summary.json", summarise([], {}))
    path = tmp_path / "per_file.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=r"per_file\.csv"):
        read_results(tmp_path)


@pytest.mark.parametrize("content", ["", "null", "[]", '{"name": "x"}'])
def test_damaged_summaries_are_named(content, tmp_path):
    write_per_file(tmp_path, [FileResult("f", {"wb_pesq": 1.25})])
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary\.json: .*evaluate again"):
        read_results(tmp_path)
