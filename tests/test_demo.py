"""The demo as a person runs it."""

import json
import os
import subprocess
import sys

import pytest
import soundfile

from saf_jax.cli import main

SHORT = ["--set", "train.steps=12", "train.validate_every=12", "data.crop_seconds=1", "model.layers=1"]
# A network that is soon compiled.
SHORT += ["model.attention_kernel=3", "model.dense_dilations=[1]", "model.tcn_dilations=[1]"]


def run_demo(workdir, *arguments):
    variables = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "saf_jax", "demo", "--workdir", str(workdir), "--quiet", *arguments]
    return subprocess.run(command, env=variables, text=True, capture_output=True)


@pytest.mark.slow
def test_demo_end_to_end(tmp_path):
    first = run_demo(tmp_path, *SHORT)
    assert first.returncode == 0, first.stderr
    for text in ("noisy", "SAF (the paper)", "2.84", "ours", "Listen:", "Look:", "Next:"):
        assert text in first.stdout
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["files"] >= 20 and summary["failed"] == 0
    enhanced = sorted((tmp_path / "results" / "enhanced").glob("*.wav"))
    assert len(enhanced) == summary["files"]
    noisy = sorted((tmp_path / "corpus" / "test" / "noisy").iterdir())
    assert soundfile.info(enhanced[0]).frames == soundfile.info(noisy[0]).frames
    assert (tmp_path / "spectrograms.png").stat().st_size > 10_000


def test_missing_packages_are_named(monkeypatch, capsys):
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "pesq" else real(name, *rest))
    assert main(["demo", "--workdir", "unused"]) == 2
    assert capsys.readouterr().err == "error: the demo needs pesq: pip install 'saf-jax[demo]'\n"


@pytest.mark.slow
def test_full_demo_improves_held_out_voices_in_held_out_noises(tmp_path):
    result = run_demo(tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["files"] >= 20
    assert summary["wb_pesq"] - summary["noisy_wb_pesq"] >= 0.2
    assert summary["si_sdr_db"] - summary["noisy_si_sdr_db"] >= 3
    # Called again, it finds everything done and says the same.
    again = run_demo(tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split("Listen:")[0].split("done\n")[1] == result.stdout.split("Listen:")[0].split("done\n")[1]
