"""The report page: its content, and how it looks and sounds in a real browser."""

import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import browser
import pytest
from pairs import write_pairs

from saf_jax import scoring
from saf_jax.cli import main
from saf_jax.evaluation import evaluate
from saf_jax.metrics import METRICS
from saf_jax.report import choose, write_report
from saf_jax.results import FileResult


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """An evaluated set of six files with an odd name."""
    root = write_pairs(tmp_path_factory.mktemp("pairs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saf_jax.evaluation.score_all", lambda tasks, jobs: map(scoring.score_task, tasks))
        evaluate(
            clean=root / "clean",
            noisy=root / "noisy",
            enhanced=root / "enhanced",
            out=root / "out",
            log_file=root / "log.txt",
            name="<b>odd & name</b>",
            quiet=True,
        )
    return root / "out"


def ranked(gains: list[float]) -> list[FileResult]:
    return [FileResult(f"f{i}", {"wb_pesq": 2.0 + gain, "noisy_wb_pesq": 2.0}) for i, gain in enumerate(gains)]


def test_choice_of_files_by_gain():
    gains = [0.1 * ((7 * i) % 31) for i in range(31)]
    chosen = choose(ranked(gains), 5)
    by_gain = sorted(gains)

    def of(part: str) -> list[float]:
        return [file.values["wb_pesq"] - 2.0 for file in chosen[part]]

    assert of("best") == pytest.approx(by_gain[:-6:-1])
    assert of("worst") == pytest.approx(by_gain[:5])
    assert sorted(of("median")) == pytest.approx(by_gain[13:18])


@pytest.mark.parametrize("files", range(8))
def test_no_file_is_shown_twice_and_small_sets_are_shown_whole(files):
    chosen = choose(ranked([float(i % 3) for i in range(files)]), 5)
    names = [file.file for part in chosen.values() for file in part]
    assert sorted(names) == [f"f{i}" for i in range(files)]
    assert choose(ranked([1.0, 2.0]), 0) == {"best": [], "median": [], "worst": []}


def test_page_holds_everything_and_needs_nothing(results, capsys):
    assert main(["report", str(results)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == results / "report.html"
    page = path.read_text(encoding="utf-8")
    assert "&lt;b&gt;odd &amp; name&lt;/b&gt;" in page and "<b>odd" not in page
    summary = json.loads((results / "summary.json").read_text())
    for metric in METRICS:
        assert f"<b>{summary[metric]:.2f}" in page or f"<b>{summary[metric]:.3f}" in page
    for text in ("SAF (the paper)", "cafe", "saf-jax eval --clean", summary["versions"]["numpy"], "s5"):
        assert text in page
    # Pictures, sounds and the icon lie within the page.
    assert set(re.findall(r'(?:src|href)="([^":]*:)', page)) == {"data:"}
    assert page.count("<audio") == 18 and page.count("data:image/webp") == 18


def test_page_in_a_real_browser(results, tmp_path):
    if reason := browser.missing():
        pytest.skip(reason)
    page = write_report(results, tmp_path / "page.html")
    measure = """
        const players = [...document.querySelectorAll('audio')];
        await Promise.all(players.map(player => player.readyState > 0 || player.error ? 0 :
            new Promise(done => { player.onloadedmetadata = player.onerror = done; })));
        const last = players[players.length - 1];
        await last.play();
        await new Promise(done => { last.ontimeupdate = () => last.currentTime > 0.1 && done(); });
        last.pause();
        return {
          players: players.length,
          durations: players.map(player => player.duration),
          played: last.currentTime,
          blankPictures: [...document.images].filter(image => !(image.naturalWidth > 0)).length,
          page: document.documentElement.scrollWidth,
          smallText: [...document.querySelectorAll('p, td, th, dd, figcaption')]
            .filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length,
          cutOff: [...document.querySelectorAll('h1, h2, h3, p, img, audio, dd, .figure')]
            .map(e => e.getBoundingClientRect()).filter(box => box.right > innerWidth || box.left < 0).length,
          columns: new Set([...document.querySelector('.sides').children].map(e => e.offsetLeft)).size,
        };"""
    with browser.browser() as chromium:
        for width, columns in ((1280, 3), (400, 1)):
            chromium.open(page, width)
            seen = chromium.run(measure)
            assert isinstance(seen, dict), seen
            assert seen["players"] == 18 and seen["played"] > 0.1
            assert seen["durations"] == pytest.approx([1.5] * 18, abs=0.01)
            assert (seen["blankPictures"], seen["smallText"], seen["cutOff"]) == (0, 0, 0)
            assert seen["page"] == width and seen["columns"] == columns
        assert chromium.console() == []


def test_recordings_that_are_gone_are_said(results, tmp_path, monkeypatch):
    summary = json.loads((results / "summary.json").read_text())
    # One folder gone, one without its recordings.
    summary["folders"]["clean"] = str(tmp_path / "moved")
    summary["folders"]["enhanced"] = str(tmp_path / "copy" / "enhanced")
    (tmp_path / "copy" / "enhanced").mkdir(parents=True)
    (tmp_path / "copy" / "enhanced" / "made_with.json").write_text("{}")
    (tmp_path / "copy" / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "copy" / "per_file.csv").write_text((results / "per_file.csv").read_text())
    page = write_report(tmp_path / "copy", files=1).read_text(encoding="utf-8")
    # One each of best, median and worst: only the noisy version can be heard.
    assert page.count("<audio") == 3 and page.count("not there any more") == 6


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_package_is_one_line(package, results, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["report", str(results)]) == 2
    assert f"needs the package {package}: pip install 'saf-jax[report]'" in capsys.readouterr().err


def test_folders_without_results_are_refused(tmp_path, capsys):
    for folder in (tmp_path / "nowhere", tmp_path):
        assert main(["report", str(folder)]) == 2
        assert str(folder) in capsys.readouterr().err


def test_a_results_folder_that_was_moved_plays_its_own_files(results, tmp_path):
    """The enhanced files lie in the folder itself; where they lay when they were made may hold others by now."""
    summary = json.loads((results / "summary.json").read_text())
    others = summary["folders"]["enhanced"]
    summary |= {"weights": "mine", "weights_hash": "abc", "parameters": 1000, "gmac_per_second": 0.1}
    summary["folders"]["enhanced"] = str(tmp_path / "server" / "results" / "enhanced")
    (tmp_path / "home").mkdir()
    shutil.copytree(others, tmp_path / "home" / "enhanced")
    (tmp_path / "home" / "summary.json").write_text(json.dumps(summary))
    shutil.copy(results / "per_file.csv", tmp_path / "home")
    page = write_report(tmp_path / "home").read_text(encoding="utf-8")
    assert page.count("<audio") == 18 and "not there any more" not in page


def test_results_of_another_version_are_told_in_one_line(results, tmp_path, capsys):
    summary = json.loads((results / "summary.json").read_text())
    del summary["composite_scale"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    shutil.copy(results / "per_file.csv", tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no 'composite_scale': evaluate again" in capsys.readouterr().err


def test_rows_have_headings_and_sources_are_text(results):
    page = write_report(results).read_text(encoding="utf-8")
    rows = re.findall(r"<tr[^>]*>\s*<(t[hd])([^>]*)>", page.partition("<tbody>")[2])
    assert {tag for tag, _ in rows} == {"th"} and all("scope=" in attributes for _, attributes in rows)
    assert "arXiv 2308.02263" in re.sub("<[^>]*>", "", page) and "title=" not in page.partition("<body>")[2]
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
