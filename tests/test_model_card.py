"""What benchmarks/model_card.py changes in a card, and what it leaves."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from saf_jax.metrics import METRICS


@pytest.fixture
def model_card(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import model_card

    return model_card


def test_a_card_gets_its_figures_and_keeps_what_was_written_by_hand(model_card):
    head = "---\ndata_licences: CC BY 4.0\nwb_pesq: 1.0\n---\n"
    text = f"{head}# Mine\n\n{model_card.BEGIN}\nold\n{model_card.END}\n\n## Log\n| a |\n"
    new = model_card.renewed(text, {"wb_pesq": 2.5}, "new figures", "| b |")
    _, front, body = new.split("---\n", 2)
    assert yaml.safe_load(front) == {"data_licences": "CC BY 4.0", "wb_pesq": 2.5}
    assert "new figures" in body and "old" not in body
    assert body.startswith("# Mine\n") and body.endswith("## Log\n| a |\n| b |\n")
    again = model_card.renewed(new, {"wb_pesq": 2.5}, "new figures", "| c |")
    assert again == new + "| c |\n"


def test_tables_of_a_set(model_card):
    both = [f"{prefix}{metric}" for prefix in ("", "noisy_") for metric in METRICS]
    group = {"group": "0 to 5", "files": 2} | dict.fromkeys(both, 1.5)
    summary = {"files": 3, "breakdowns": {"measured_snr_db": [group], "speaker": [group]}}
    summary |= dict.fromkeys(both, 2.0) | {"intervals": {metric: [1.0, 3.0] for metric in both}}
    lines = model_card.set_tables("Mine", summary).splitlines()
    assert "### Mine: 3 files" in lines
    assert sum("2.000 (1.000 to 3.000)" in line for line in lines) == 2
    assert sum("0 to 5" in line for line in lines) == 1  # speakers are left out
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables} == {9, 8}


def test_rumble_does_not_count_as_voice(model_card):
    seconds = np.arange(16000) / 16000
    voice, rumble = np.sin(2 * np.pi * 200 * seconds), np.sin(2 * np.pi * 20 * seconds)
    np.testing.assert_allclose(model_card.without_rumble(voice + 3 * rumble, 16000), voice, atol=1e-9)
