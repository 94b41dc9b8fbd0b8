"""The README's picture, by the command that its caption gives."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.mark.ci
def test_the_picture_is_drawn_as_the_caption_says(audio_root, tmp_path, monkeypatch, capsys):
    caption = next(line for line in (ROOT / "README.md").read_text().splitlines() if "benchmarks/picture.py" in line)
    recording = caption.split("`")[1]
    pair = [str(audio_root / "voicebank_demand" / "test" / kind / f"{recording}.flac") for kind in ("noisy", "clean")]
    out = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["picture.py", *pair, "-o", str(out)])
    runpy.run_path(str(ROOT / "benchmarks" / "picture.py"), run_name="__main__")
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as drawn, Image.open(ROOT / "docs" / "spectrograms.png") as shown:
        # Versions of matplotlib differ by a few points.
        assert drawn.size == pytest.approx(shown.size, rel=0.05)
        assert drawn.mode == "P" and drawn.getextrema()[1] > 8
