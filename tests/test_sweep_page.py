"""The page of a sweep."""

import dataclasses
import re

import pytest
import sweeps

from saf_jax.sweep_page import write_page
from saf_jax.sweep_results import make_table


@pytest.fixture
def page(tmp_path):
    """Makes the page of rows, those named in `done` with runs that are there."""

    def make(*names, done, sets=("dev",), seeds=(0, 1)):
        spec = dataclasses.replace(sweeps.spec_of(*names), title="Depth <1>")
        runs, scored = sweeps.planned(tmp_path, spec, seeds, sets)
        for number, run in enumerate(runs):
            if run.row in done:
                pesq = {f"f{place}": 1.0 + place / 10 + number / 50 for place in range(6)}
                sweeps.finish(run, dict.fromkeys(scored, pesq))
        table = make_table(
            spec, runs, scored, {"spec": "mine", "budget": "small", "command": "saf-jax sweep mine"}, tmp_path
        )
        path = write_page(table, tmp_path, tmp_path / "mine")
        assert path == tmp_path / "mine" / "index.html"
        return path.read_text(encoding="utf-8")

    return make


def pictures(text):
    return re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)"', text)


def test_a_page_holds_the_table_the_pictures_and_where_rows_come_from(page):
    text = page("one", "two & more", done=("one", "two & more"), sets=("dev", "far"))
    assert "Depth &lt;1&gt;" in text and "two &amp; more" in text and "<1>" not in text
    assert (
        "4 of 4 runs" in text and "dev: 6 files" in text and "far: 6 files" in text and "Rows against test sets" in text
    )
    assert pictures(text) == [
        "WB-PESQ over parameters", "WB-PESQ over GMAC per second of audio", "SI-SDR (dB) over parameters",
        "SI-SDR (dB) over GMAC per second of audio", "training loss", "validation loss",
    ]  # fmt: skip
    assert "abc123" in text and "1 x cpu, 2 cores" in text and "saf-jax sweep mine" in text
    assert "saf-jax train --config paper --workdir runs/" in text and "model.layers=2 train.seed=1" in text
    # One file that needs nothing else.
    assert not re.search(r'(?:src|href)="(?!data:|#)', text) and "<script" not in text


def test_a_page_while_a_row_has_not_begun(page):
    text = page("one", "two", "three", done=("one", "three"))
    assert "4 of 6 runs" in text and "Not there: two, seed 0: missing" in text
    assert "training loss" in pictures(text)


def test_a_page_of_nothing(page):
    text = page("one", "two", done=())
    assert "0 of 4 runs" in text and pictures(text) == [] and "dev: 0 files" in text


def test_names_that_look_like_formulas_or_hidden_ones(page):
    text = page("$\\frac{$", "_two", "a $b and $c", done=("$\\frac{$", "_two", "a $b and $c"))
    assert "validation loss" in pictures(text)


def test_more_rows_than_colours(page):
    names = [f"row {number}" for number in range(12)]
    assert "12 of 12 runs" in page(*names, done=names, seeds=(0,))


def test_curves_of_a_run_under_way_are_drawn(tmp_path):
    spec = sweeps.spec_of("one", "two")
    runs, sets = sweeps.planned(tmp_path, spec)
    sweeps.write_log(runs[0].folder, steps=60)
    sweeps.write_log(runs[2].folder, steps=20)
    # Begun, but without a step; and a log that something else spoiled.
    sweeps.write_log(runs[1].folder, steps=0)
    runs[3].folder.mkdir(parents=True)
    (runs[3].folder / "log.jsonl").write_text("not a log\n")
    table = make_table(spec, runs, sets, {"spec": "mine", "budget": "small", "command": ""}, tmp_path)
    assert table["missing"][0] == "one, seed 0: interrupted at step 60"
    assert pictures(write_page(table, tmp_path, tmp_path / "mine").read_text()) == ["training loss", "validation loss"]
