"""Estimates without a reference."""

import csv
import json

import numpy as np
import pytest
from pairs import RATE_HZ, speech_like, write_pairs

from saf_jax import audio
from saf_jax.cli import main
from saf_jax.data.active_level import snr_db
from saf_jax.no_reference import estimate


def test_floor_level_and_ratio_of_speech_in_steady_noise():
    speech = speech_like(6.0, 0)
    noise = np.random.default_rng(0).standard_normal(len(speech))
    ratios = []
    for gain in (0.003, 0.01, 0.03):
        found = estimate(speech + gain * noise, RATE_HZ)
        # The 10th percentile of frames lies about 1 dB below their mean.
        assert found.noise_floor_db == pytest.approx(20 * np.log10(gain), abs=1.5)
        assert found.snr_db == pytest.approx(snr_db(speech, gain * noise, RATE_HZ), abs=2.5)
        ratios.append(found.snr_db)
    assert ratios == sorted(ratios, reverse=True)


def test_levels_follow_the_gain_and_the_rest_does_not():
    loud = speech_like(3.0, 1)
    a, b = estimate(loud, RATE_HZ), estimate(0.1 * loud, RATE_HZ)
    assert b.noise_floor_db == pytest.approx(a.noise_floor_db - 20, abs=0.02)
    assert b.active_level_db == pytest.approx(a.active_level_db - 20, abs=0.5)
    assert (b.bandwidth_hz, b.clipped_percent) == (a.bandwidth_hz, a.clipped_percent) and a.clipped_percent < 0.05


@pytest.mark.parametrize("ceiling", [1.0, 0.3])
def test_clipped_part_is_that_of_the_samples_beyond(ceiling):
    samples = speech_like(3.0, 2)
    samples *= 2 * ceiling / np.abs(samples).max()
    clipped = np.clip(samples, -ceiling, ceiling)
    found = estimate(clipped, RATE_HZ).clipped_percent
    # Peaks of one or two samples cannot be told from clipping and do not count.
    beyond = 100 * np.mean(np.abs(samples) >= ceiling)
    assert 0.75 * beyond < found <= beyond and beyond > 1


@pytest.mark.parametrize("low_hz", [8000, 11025, 16000])
def test_bandwidth_of_what_came_from_a_lower_rate(low_hz):
    wide = np.random.default_rng(0).standard_normal(3 * 48000).astype(np.float32) * 0.1
    narrow = audio.resample(audio.resample(wide, 48000, low_hz), low_hz, 48000)
    assert estimate(narrow, 48000).bandwidth_hz == pytest.approx(low_hz / 2, rel=0.1)
    assert estimate(wide, 48000).bandwidth_hz > 23500


@pytest.mark.parametrize("samples", [np.zeros(16000), np.zeros(1), np.full(10, 0.5), np.ones(1)])
def test_odd_signals_have_estimates_or_none(samples):
    found = estimate(samples, RATE_HZ)
    assert found.seconds == round(len(samples) / RATE_HZ, 3)
    if not samples.any():
        assert (found.active_level_db, found.noise_floor_db, found.snr_db, found.bandwidth_hz) == (None,) * 4


def test_folder_before_and_after(tmp_path, capsys):
    root = write_pairs(tmp_path / "set", count=3)
    (root / "noisy" / "broken.wav").write_bytes(b"")
    (root / "enhanced" / "s2.wav").unlink()
    out = tmp_path / "out"
    command = ["eval", "--no-reference", str(root / "noisy"), "--enhanced", str(root / "enhanced"), "--out", str(out)]
    assert main(command) == 1
    told = capsys.readouterr()
    assert "Estimates without a reference" in told.out and "failed: broken" in told.err and "failed: s2" in told.err
    with (out / "no_reference.csv").open() as table:
        rows = {(row["file"], row["when"]): row for row in csv.DictReader(table)}
    assert set(rows) == {(f"s{i}", when) for i in range(2) for when in ("before", "after")}
    for i in range(2):
        floors = [float(rows[f"s{i}", when]["estimated_noise_floor_db"]) for when in ("before", "after")]
        # The noise of the enhanced files is 10.5 dB lower.
        assert floors[0] - floors[1] == pytest.approx(10.5, abs=1.0)
    stored = json.loads((out / "no_reference.json").read_text())
    assert "Estimates" in stored["note"] and set(stored["failures"]) == {"broken", "s2"}


def test_before_alone_needs_no_output_folder(tmp_path, capsys):
    root = write_pairs(tmp_path / "set", count=1)
    assert main(["eval", "--no-reference", str(root / "noisy")]) == 0
    assert "after" not in capsys.readouterr().out.split("\n\n", 1)[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--clean", "x"], "--clean needs references"),
        (["--no-audio"], "--no-audio is of no use here"),
        (["--composite-scale", "divided"], "--composite-scale is of no use here"),
        (["--name", "x"], "--name is of no use here"),
        (["--jobs", "2"], "--jobs is of no use here"),
        (["--enhanced", "{root}/twice"], "have the same name without ending"),
        (["--weights", "x", "--out", "{root}/made"], "s0.wav: was not made by an earlier call"),
        (["--weights", "x"], "--out is missing"),
        (["--enhanced", "{root}/clean/none"], "no such folder"),
    ],
)
def test_unusable_arguments(arguments, message, tmp_path, capsys):
    root = write_pairs(tmp_path / "set", count=1)
    for name in ("twice/s0.wav", "twice/s0.flac", "made/enhanced/s0.wav"):
        audio.write(root / name, audio.Audio(np.ones(100, np.float32) / 2, RATE_HZ))
    command = ["eval", "--no-reference", str(root / "noisy"), *(item.format(root=root) for item in arguments)]
    assert main(command) == 2 and message in capsys.readouterr().err


def test_two_recordings_of_one_name_are_refused(tmp_path, capsys):
    root = write_pairs(tmp_path / "set", count=1)
    audio.write(root / "noisy" / "s0.flac", audio.read(root / "noisy" / "s0.wav"))
    assert main(["eval", "--no-reference", str(root / "noisy")]) == 2
    assert "have the same name without ending" in capsys.readouterr().err


def test_estimates_follow_the_truth_on_real_recordings(audio_root):
    root = audio_root / "voicebank_demand" / "test"
    estimated, true = [], []
    for pair in audio.list_pairs(root / "clean", root / "noisy"):
        clean, noisy = (audio.read_mono(path, RATE_HZ).astype(np.float64) for path in (pair.clean, pair.noisy))
        estimated.append(estimate(noisy, RATE_HZ).snr_db)
        true.append(snr_db(clean, noisy - clean, RATE_HZ))
    # Quiet moments of the noise make the estimate some dB too high.
    assert np.corrcoef(estimated, true)[0, 1] > 0.9 and 2 < np.median(np.subtract(estimated, true)) < 5


def test_an_offset_is_no_floor():
    samples = speech_like(4.0, 3) + 0.001 * np.random.default_rng(0).standard_normal(round(4.0 * RATE_HZ))
    plain, offset = estimate(samples, RATE_HZ), estimate(samples + 0.02, RATE_HZ)
    for name in ("noise_floor_db", "snr_db", "active_level_db"):
        assert getattr(offset, name) == pytest.approx(getattr(plain, name), abs=0.1)
    assert offset.bandwidth_hz == plain.bandwidth_hz


def test_of_long_recordings_a_part_of_the_spectra_tells_the_bandwidth(monkeypatch):
    wide = np.random.default_rng(0).standard_normal(60000)
    whole = estimate(wide, RATE_HZ)
    monkeypatch.setattr("saf_jax.no_reference._MOST_SPECTRA", 20)
    assert estimate(wide, RATE_HZ).bandwidth_hz == pytest.approx(whole.bandwidth_hz, rel=0.01)


def test_a_recording_beyond_the_memory_costs_itself_alone(tmp_path, monkeypatch, capsys):
    root = write_pairs(tmp_path / "set", count=2)
    once = []

    def short_of_memory(samples, rate):
        if not once:
            once.append(True)
            raise MemoryError
        return estimate(samples, rate)

    monkeypatch.setattr("saf_jax.no_reference.estimate", short_of_memory)
    assert main(["eval", "--no-reference", str(root / "noisy")]) == 1
    captured = capsys.readouterr()
    assert "failed: s0: is too long for the memory: cut it" in captured.err and "s1" in captured.out
