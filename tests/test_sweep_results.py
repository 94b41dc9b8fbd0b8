"""The table of a sweep, from runs that look as if they had been made."""

import csv
import json

import pytest
import sweeps

from saf_jax.errors import UserError
from saf_jax.metrics import METRICS
from saf_jax.sweep_markdown import format_markdown
from saf_jax.sweep_results import make_table, read_table, write_table
from saf_jax.sweep_runs import scores_folder

FILES = [f"f{number}" for number in range(12)]


def scores(shift):
    """WB-PESQ of all files: they differ widely from each other, alike in all runs."""
    return {file: 1.5 + number / 10 + shift for number, file in enumerate(FILES)}


@pytest.fixture
def sweep(tmp_path):
    """Three rows, two seeds; `finish(row, seed, shift)` makes a run look done, `table()` is what there is then."""
    spec = sweeps.spec_of("one", "two", "three")
    runs, sets = sweeps.planned(tmp_path, spec, sets=("dev", "far"))

    class Sweep:
        folder = tmp_path / "mine"
        by_name = {(run.row, run.seed): run for run in runs}  # noqa: RUF012

        def finish(self, row, seed, shift, **record):
            pesq = scores(shift)
            sweeps.finish(self.by_name[row, seed], {sets[0]: pesq, sets[1]: pesq}, **record)

        def scores_of(self, row, seed):
            return scores_folder(self.by_name[row, seed], sets[0])

        def table(self):
            return make_table(spec, runs, sets, {"spec": "mine", "budget": "small", "command": "none"}, tmp_path)

    return Sweep()


def cell(table, row, metric="wb_pesq", name="dev"):
    return next(item for item in table["rows"] if item["name"] == row)["scores"][name][metric]


def test_means_differences_and_verdicts(sweep):
    for seed, noise in ((0, 0.001), (1, -0.001)):
        sweep.finish("one", seed, noise)
        sweep.finish("two", seed, 0.2 - noise)
        sweep.finish("three", seed, -noise / 2)
    table = sweep.table()
    assert table["failed"] == table["missing"] == table["notes"] == []
    assert [item["files"] for item in table["sets"]] == [12, 12]
    one, two, three = (cell(table, row) for row in ("one", "two", "three"))
    assert one["mean"] == pytest.approx(2.05) and one["deviation"] == pytest.approx(0.001 * 2**0.5)
    assert "difference" not in one
    assert two["difference"] == pytest.approx(0.2) and two["verdict"] == "better" and two["files"] == 12
    # Files that differ widely do not widen the interval: they are paired.
    assert two["low"] == pytest.approx(0.2) and two["high"] == pytest.approx(0.2)
    assert three["verdict"] == "within seeds" and abs(three["difference"]) < three["margin"]
    assert table["noisy"]["far"]["wb_pesq"] == 1.5
    assert [row["parameters"] for row in table["rows"]] == [1000, 2000, 3000]


def test_what_failed_or_is_not_there_is_said_and_in_no_mean(sweep):
    sweep.finish("one", 0, 0.0)
    sweep.finish("one", 1, 0.1)
    sweep.finish("two", 0, 0.3)
    sweeps.fail(sweep.by_name["two", 1], "loss is not finite")
    # Row three has not begun: not even its folders are there.
    table = sweep.table()
    assert table["failed"] == ["two, seed 1: loss is not finite"]
    assert table["missing"] == ["three, seed 0: missing", "three, seed 1: missing"]
    two, three = cell(table, "two"), cell(table, "three")
    assert two["mean"] == pytest.approx(2.35) and two["seeds"] == 1 and two["difference"] == pytest.approx(0.25)
    assert two["verdict"] in ("within seeds", "better")
    assert three["mean"] is None and three["seeds"] == 0 and "verdict" not in three
    text = write_table(table, sweep.folder)
    assert "failed: two, seed 1: loss is not finite" in text and "not there: three, seed 0: missing" in text
    line = next(line.split() for line in text.splitlines() if line.startswith("three"))
    assert line == ["three", "-", "-", "-", "0", "of", "2", *["-"] * len(METRICS)]


@pytest.mark.parametrize("there", [(), ("two",)])
def test_a_table_without_its_reference(sweep, there):
    for row in there:
        sweep.finish(row, 0, 0.0)
    table = sweep.table()
    assert cell(table, "one")["mean"] is None
    assert (cell(table, "two")["mean"] is not None) == bool(there) and "verdict" not in cell(table, "two")
    assert "one, seed 0: missing" in write_table(table, sweep.folder)


def test_one_seed_gives_no_verdict(sweep):
    sweep.finish("one", 0, 0.0)
    sweep.finish("two", 0, 0.5)
    found = cell(sweep.table(), "two")
    assert found["difference"] == pytest.approx(0.5) and found["verdict"] == "one seed"
    assert "+0.500 ?" in write_table(sweep.table(), sweep.folder)


def test_a_run_with_unscored_files_failed(sweep):
    for row in ("one", "two"):
        sweep.finish(row, 0, 0.0)
    # A file that lacks one metric alone comes before it, and is not why.
    sweeps.write_scores(sweep.scores_of("two", 0), scores(0.0) | {"f3": None}, reason="unreadable", short=("f0",))
    table = sweep.table()
    assert table["failed"] == ["two, seed 0: dev: files without scores: 1 (f3: unreadable)"]
    assert cell(table, "two")["mean"] is None


def test_files_without_a_metric_are_left_out_of_it_and_that_is_said(sweep):
    for row in ("one", "two"):
        sweep.finish(row, 0, 0.0 if row == "one" else 0.1)
    sweeps.write_scores(sweep.scores_of("two", 0), scores(0.1), short=("f0",))
    table = sweep.table()
    assert table["notes"] == ["two, seed 0: stoi_percent on dev: 11 of 12 files have one"]
    assert cell(table, "two", "stoi_percent")["files"] == 11 and cell(table, "two")["files"] == 12


def test_runs_of_several_commits_and_machines_are_noted(sweep):
    sweep.finish("one", 0, 0.0)
    sweep.finish("two", 0, 0.0, commit="def456-dirty", cores=8)
    assert sweep.table()["notes"] == [
        "the runs were made with several commits: abc123, def456-dirty",
        "the runs were made with several numbers of cores: 2, 8",
    ]


def test_each_run_is_traced(sweep, tmp_path):
    sweep.finish("two", 1, 0.0)
    run = sweep.table()["rows"][1]["runs"][1]
    assert (run["seed"], run["state"], run["config"], run["commit"]) == (1, "done", "paper", "abc123")
    assert (tmp_path / run["folder"] / "run.json").is_file() and not run["folder"].startswith("/")
    assert run["overrides"] == ["model.layers=2", "train.seed=1"]


def test_what_is_written_is_read_again(sweep):
    for row in ("one", "two"):
        sweep.finish(row, 0, 0.0 if row == "one" else 0.25)
    table = sweep.table()
    write_table(table, sweep.folder)
    strict = json.loads((sweep.folder / "table.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read_table(sweep.folder) == strict
    assert cell(strict, "two")["difference"] == pytest.approx(0.25) and cell(strict, "two")["margin"] is None
    with (sweep.folder / "table.csv").open(newline="") as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["one", "two", "three"] and rows["three"]["state"] == "0 of 2 runs"
    assert float(rows["two"]["far.wb_pesq.difference"]) == pytest.approx(0.25)
    assert rows["one"]["dev.wb_pesq.difference"] == rows["three"]["dev.wb_pesq.mean"] == ""
    with pytest.raises(UserError, match="holds no table of a sweep"):
        read_table(sweep.folder / "elsewhere")


def test_a_difference_on_few_files_has_no_interval(sweep):
    for seed in (0, 1):
        for row in ("one", "two"):
            sweep.finish(row, seed, 0.0)
            sweeps.write_scores(sweep.scores_of(row, seed), {"f0": 3.0 + (row == "two"), "f1": 2.0 + (row == "two")})
    table = sweep.table()
    found = cell(table, "two")
    assert found["difference"] == pytest.approx(1.0) and found["verdict"] == "too few files"
    lines = write_table(table, sweep.folder).splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("two"))
    assert "+1.000 ?" in lines[place + 1] and "+" not in lines[place + 2]
    assert "nan" not in format_markdown(table) and "()" not in format_markdown(table)
