"""The page of a training run, and the reading of its log."""

import json
import re
import sys

import browser
import numpy as np
import pytest
from pairs import speech_like

from saf_jax import audio, run_report
from saf_jax.cli import main
from saf_jax.errors import UserError
from saf_jax.run_log import curve, keys_of, read_log, thinned, trained_seconds
from saf_jax.run_report import write_run_report


def write_log(folder, entries, end=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"unix_seconds": 1000.0 + i, **entry}) + "\n" for i, entry in enumerate(entries))
    (folder / "log.jsonl").write_text(text + end)


def train(step, loss, **more):
    return {"event": "train", "step": step, "skipped": 0, "loss": loss, "complex": loss / 2, "learning_rate": 1e-3,
            "gradient_norm": 1.0, "audio_seconds_per_second": 80.0 + step, **more}  # fmt: skip


def valid(step, loss):
    return {"event": "valid", "step": step, "valid_loss": loss, "valid_complex": loss / 2, "gap": 0.01, "train_loss": 1}


def scores(step, pesq):
    return {"event": "scores", "step": step, "wb_pesq": pesq, "noisy_wb_pesq": 1.97, "si_sdr_db": 9.0}


INTERRUPTED = [
    {"event": "start", "step": 0, "devices": "1 x cpu"},
    train(20, 0.9),
    valid(20, 0.8),
    train(40, 0.7),
    train(60, 0.99),
    {"event": "start", "step": 40, "devices": "1 x cpu"},
    train(60, 0.5, skipped=3),
    valid(60, float("nan")),
    scores(60, 2.345),
]


def test_steps_that_were_done_twice_count_once(tmp_path):
    write_log(tmp_path, INTERRUPTED, end='{"unix_seconds": 2000, "event": "tra')
    entries = read_log(tmp_path)
    losses = curve(entries, "train", "loss")
    assert list(losses.steps) == [20, 40, 60] and list(losses.values) == [0.9, 0.7, 0.5]
    assert list(curve(entries, "valid", "valid_loss").steps) == [20]
    # 3 s before the interruption, counted to the last entry that is left, and 3 s after it.
    assert trained_seconds(entries) == 6.0
    assert "gradient_norm" in keys_of(entries, "train") and keys_of(entries, "end") == []


def test_long_curves_become_means_of_equal_parts(tmp_path):
    write_log(tmp_path, [train(step, float(step)) for step in range(1, 1001)])
    points = thinned(curve(read_log(tmp_path), "train", "loss"), 10)
    assert list(points.steps) == list(range(100, 1001, 100))
    assert points.values == pytest.approx(np.arange(10) * 100 + 50.5)


@pytest.fixture
def run_folder(tmp_path):
    """A folder as a training leaves it, with a name and a loss that HTML must escape."""
    folder = tmp_path / "<b>run"
    write_log(folder, [*INTERRUPTED, {"event": "end", "step": 60}])
    (folder / "config.json").write_text(
        json.dumps({"train": {"learning_rate": 0.00321}, "data": {"valid_clean": ["x & y"]}})
    )
    (folder / "ratings.json").write_text(json.dumps({"20": 2.5, "40": -1.0, "60": None}))
    clean = 0.5 * speech_like(1.0, 0)
    for side in ("noisy", "enhanced", "clean"):
        samples = clean + (side == "noisy") * 0.01
        audio.write(folder / "listen" / "1" / f"{side}.flac", audio.Audio(samples.astype(np.float32), 16000))
    (folder / "listen" / "files.json").write_text(json.dumps({"step": 60, "names": ["p287_001"]}))
    return folder


def test_page_holds_everything_and_needs_nothing(run_folder, capsys, monkeypatch):
    drawn = {}
    plot = run_report.report_figures.line_plot

    def recorded(curves, *, log_scale):
        drawn[tuple(curves)] = curves
        return plot(curves, log_scale=log_scale)

    monkeypatch.setattr(run_report.report_figures, "line_plot", recorded)
    assert main(["report", str(run_folder)]) == 0
    assert capsys.readouterr().out.strip() == str(run_folder / "report.html")
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;run" in page and "<b>run" not in page
    for text in (
        "finished, step 60",
        "2.345",
        "noisy 1.970",
        "3 steps were skipped",
        "0.00321",
        "x &amp; y",
        "p287_001",
        "lowest 0.8000 at step 20",
        "best checkpoint</dt><dd>step 20",
        "0.00 hours, started 2 times",
    ):
        assert text in page, text
    titles = re.findall(r"<figcaption>([^<]*)</figcaption><img", page)
    assert titles == ["loss", "gap: validation minus training loss", "WB-PESQ", "SI-SDR (dB)", "loss: complex",
                      "learning rate", "gradient norm", "seconds of audio per second"]  # fmt: skip
    assert list(drawn["enhanced", "noisy"]["enhanced"].values) == [2.345]
    assert set(re.findall(r'(?:src|href)="([^":]*:)', page)) == {"data:"}
    assert page.count("<audio") == 3 and page.count("data:image/webp") == 3


def test_overfitting_is_pointed_at(tmp_path):
    write_log(tmp_path, [valid(step, abs(step - 3) / 10) for step in range(1, 9)])
    page = write_run_report(tmp_path).read_text(encoding="utf-8")
    assert "lowest at step 3 and has not fallen in the 5 validations since" in page
    write_log(tmp_path, [valid(step, 1 / step) for step in range(1, 9)])
    assert "may be overfitting" not in write_run_report(tmp_path).read_text(encoding="utf-8")


def test_run_that_has_not_logged_a_step(tmp_path):
    write_log(tmp_path, INTERRUPTED[:1])
    page = write_run_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "under way, step 0" in page and "no step yet" in page


def test_what_cannot_be_reported_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "log.jsonl").write_text("once upon a time\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "line 1 is not an entry" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be read"):
        write_run_report(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"pip install 'saf-jax\[report\]'"):
        write_run_report(tmp_path)


def test_page_in_a_real_browser(run_folder):
    if reason := browser.missing():
        pytest.skip(reason)
    measure = """
        return {
          page: document.documentElement.scrollWidth,
          blank: [...document.images].filter(image => !(image.naturalWidth > 0)).length,
          cutOff: [...document.querySelectorAll('h1, h2, h3, p, img, audio, dd, .figure')]
            .map(e => e.getBoundingClientRect()).filter(box => box.right > innerWidth || box.left < 0).length,
          columns: new Set([...document.querySelector('.plots').children].map(e => e.offsetLeft)).size,
        };"""
    page = write_run_report(run_folder)
    with browser.browser() as chromium:
        for width, columns in ((1280, 3), (400, 1)):
            chromium.open(page, width)
            assert chromium.run(measure) == {"page": width, "blank": 0, "cutOff": 0, "columns": columns}
        assert chromium.console() == []
