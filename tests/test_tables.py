"""The paper's table in its formats."""

import csv
import io
import re

import pytest

from saf_jax import tables
from saf_jax.evaluation_summary import summarise
from saf_jax.metrics import METRICS
from saf_jax.results import NOISY_METRICS, FileResult


def summary(name: str = "my_net & co", scale: str = "standard", **more) -> dict:
    values = {metric: float(i) for i, metric in enumerate((*METRICS, *NOISY_METRICS), 1)}
    files = [FileResult(f"f{i}", {key: value + 0.01 * i for key, value in values.items()}) for i in range(10)]
    return {"name": name, "composite_scale": scale, **summarise(files, {}), **more}


def test_published_rows_have_figures_as_printed_and_sources():
    rows = {row.name: row for row in tables.field_results()}
    assert len(rows) == 14 and all(row.source and "wb_pesq" in row.cells for row in rows.values())
    assert rows["SAF (the paper)"].cells == {
        "parameters_m": "0.58", "wb_pesq": "2.84", "stoi_percent": "94.3", "ssnr_db": "9.05",
    }  # fmt: skip
    assert rows["DPT-FSNet"].cells["covl"] == "4.00" and rows["CMGAN"].cells["ssnr_db"] == "11.10"
    assert {name for name, row in rows.items() if row.divided} == {"CMGAN", "MP-SENet"}
    for row in rows.values():
        assert all(re.fullmatch(r"\d+(\.\d+)?", cell) for cell in row.cells.values()), row


def test_text_is_aligned_and_marks_the_scale():
    text = tables.format_text(tables.paper_table([summary()]))
    head, *lines = text.split("\n\n")[0].splitlines()
    assert all(len(line) <= len(head) for line in lines) and head.split()[-2:] == ["SI-SDR", "(dB)"]
    own = next(line for line in text.splitlines() if line.startswith("my_net & co"))
    assert own.split()[-7:] == ["1.045", "2.045", "3.045", "4.045", "5.04", "6.04", "7.04"]
    assert "†" not in own
    divided = tables.format_text(tables.paper_table([summary(scale="divided")]))
    assert "2.045†" in divided and " 1.045†" not in divided


def test_markdown_has_as_many_cells_in_every_line():
    text = tables.format_markdown(tables.paper_table([summary("a|b", parameters=580_000, gmac_per_second=2.5)]))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {11}
    assert "| **a\\|b** | 0.58 | 2.5 |" in text and re.search(r"1\.045 \[1\.0\d\d, 1\.0\d\d\]", text)


def test_latex_escapes_and_balances():
    text = tables.format_latex(tables.paper_table([summary(scale="divided")]))
    assert r"my\_net \& co" in text and r"2.045$^\dagger$" in text and r"STOI (\%)" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {9}
    assert text.count("{") == text.count("}")


def test_csv_holds_the_ends_of_the_intervals():
    rows = list(csv.DictReader(io.StringIO(tables.format_csv(tables.paper_table([summary()])))))
    own = rows[-1]
    assert own["kind"] == "measured" and own["files"] == "10" and own["wb_pesq"] == "1.045"
    assert float(own["wb_pesq_low"]) < 1.045 < float(own["wb_pesq_high"])
    assert "2308.02263" in rows[1]["source"] and rows[1]["csig"] == ""


def test_a_single_file_has_no_interval():
    one = summary() | summarise([FileResult("f", {"wb_pesq": 2.0, "noisy_wb_pesq": 1.5})], {})
    text = tables.format_text(tables.paper_table([one]))
    assert "2.000" in text and "95 % from" not in text and "[" not in tables.format_markdown(tables.paper_table([one]))


def test_several_evaluations_share_the_noisy_row():
    names = [row.name for row in tables.paper_table([summary("a"), summary("b")])][-3:]
    assert names == ["noisy (measured)", "a", "b"]


@pytest.mark.parametrize(
    "metric, value, text",
    [
        ("wb_pesq", 2.84049, "2.840"),
        ("ssnr_db", -9.0449, "-9.04"),
        ("stoi_percent", 94.3, "94.30"),
        ("csig", None, "-"),
    ],
)
def test_numbers(metric, value, text):
    assert tables.number(metric, value) == text
    assert tables.number(metric, float("nan")) == "-"


def test_a_metric_without_a_value_is_an_empty_cell_for_programs():
    files = [FileResult(f"f{i}", {"wb_pesq": 2.0, "noisy_wb_pesq": 1.5}) for i in range(6)]
    rows = tables.paper_table([summary() | summarise(files, {})])
    own = list(csv.DictReader(io.StringIO(tables.format_csv(rows))))[-1]
    assert own["wb_pesq"] == "2.000" and own["covl"] == "" and own["covl_low"] == ""
    assert tables.cell_text(rows[-1], "covl") == "-"


def test_latex_takes_any_name():
    line = tables.format_latex(tables.paper_table([summary(r"a\b^2~{c}")])).split("a\\textbackslash{}b")[1]
    assert line.startswith(r"\textasciicircum{}2\textasciitilde{}\{c\} &")
