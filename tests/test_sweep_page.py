"""The page of a sweep."""

import dataclasses
import re

import numpy as np
import pytest
import sweeps
from matplotlib.backends.backend_agg import FigureCanvasAgg

from saf_jax import report_figures
from saf_jax.run_log import Curve
from saf_jax.sweep_page import _lines, _logs, _scatter, write_page
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


def test_a_mean_curve_is_that_of_the_runs_that_are_done(tmp_path):
    """A seed that has just begun does not cut it short, and one that failed is in no mean."""
    spec = sweeps.spec_of("one", "two")
    runs, sets = sweeps.planned(tmp_path, spec)
    sweeps.finish(runs[0], {sets[0]: {"f": 2.0}})
    sweeps.write_log(runs[2].folder, steps=20)
    sweeps.write_log(runs[1].folder, steps=60)
    sweeps.write_log(runs[3].folder, steps=200)
    sweeps.fail(runs[3], "loss is not finite")
    table = make_table(spec, runs, sets, {"spec": "mine", "budget": "small", "command": ""}, tmp_path)
    one, two = (_logs(row, tmp_path) for row in table["rows"])
    assert [log[-1]["step"] for log in one] == [40] and [log[-1]["step"] for log in two] == [200]


@pytest.mark.parametrize("rows", [2, 12, 40])
def test_the_legend_covers_nothing_and_no_two_rows_look_alike(monkeypatch, rows):
    figures = []
    monkeypatch.setattr(report_figures, "picture", lambda figure, kind: figures.append(figure) or "data:,")
    names = [f"row {number} with a name that is long, and then some more of it" for number in range(rows)]
    _scatter([(name, 1.0 + place, 2.0, 0.1) for place, name in enumerate(names)], "parameters", "WB-PESQ")
    steps = np.arange(1, 30)
    _lines({name: Curve(steps, 1.0 / steps + place) for place, name in enumerate(names)})
    for figure in figures:
        FigureCanvasAgg(figure).draw()
        (legend,), (axes,) = figure.legends, figure.axes
        whole, box, drawn = (item.get_window_extent() for item in (figure, legend, axes))
        assert len(legend.get_texts()) == rows and box.y1 <= axes.get_tightbbox().y0 + 1
        assert box.x0 >= -1 and box.x1 <= whole.x1 + 1 and box.y0 >= -1
        assert drawn.height > 100
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figures[1].axes[0].get_lines()]
    assert len(set(looks)) == rows
