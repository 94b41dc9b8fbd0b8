"""Metrics: against the reference implementation on real audio, and against plain loops on synthetic signals."""

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_toeplitz, toeplitz

from saf_jax import composite_measures, metrics
from saf_jax.audio import read_mono
from saf_jax.errors import UserError

RATE_HZ = 16000


def synthetic_pair(seconds: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Something with the dynamics of speech, and the same with noise: syllables of filtered pulses between pauses."""
    rng = np.random.default_rng(seed)
    count = int(seconds * RATE_HZ)
    time = np.arange(count) / RATE_HZ
    pitch_hz = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    voice = sum(np.sin(k * phase) / k * (1 + np.cos(2 * np.pi * (0.3 * k) * time)) for k in range(1, 30))
    clean = 0.1 * voice * np.clip(np.sin(2 * np.pi * 2.1 * time), 0, None) + 1e-4 * rng.standard_normal(count)
    return clean, clean + 0.02 * rng.standard_normal(count)


@pytest.mark.parametrize("folder, files", [("voicebank_demand/test", 59), ("dns_no_reverb", 50)])
def test_agrees_with_the_reference_implementation_on_every_real_file(folder, files, audio_root):
    root = audio_root / folder
    with (root / "noisy_reference_metrics.tsv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert len(rows) == files
    tolerance = dict.fromkeys(("wb_pesq", "csig", "cbak", "covl"), 1e-3) | dict.fromkeys(
        ("ssnr_db", "stoi_percent", "si_sdr_db"), 1e-2
    )
    undefined = 0
    for row in rows:
        clean, noisy = (read_mono(root / side / row["file"], RATE_HZ) for side in ("clean", "noisy"))
        scores = metrics.score(clean, noisy, RATE_HZ)
        assert not scores.failures
        for name in metrics.METRICS:
            expected, value = float(row[name]), getattr(scores, name)
            assert math.isfinite(value)
            # Digital silence left the reference without a value here.
            undefined += math.isnan(expected)
            assert math.isnan(expected) or abs(value - expected) < tolerance[name], (row["file"], name)
        divided = metrics.composite(
            scores.wb_pesq,
            metrics.llr(clean, noisy),
            metrics.wss(clean, noisy, composite_scale="divided"),
            scores.ssnr_db,
        )
        for name, value in divided._asdict().items():
            expected = float(row[f"{name}_float"])
            assert math.isnan(expected) or abs(value - expected) < 1e-3, (row["file"], name, "divided")
    assert undefined == (0 if files == 59 else 2 * 26)


def test_stoi_stays_near_pystoi():
    import pystoi

    for seed in range(5):
        clean, noisy = synthetic_pair(seed=seed)
        assert metrics.stoi_percent(clean, noisy) == pytest.approx(100 * pystoi.stoi(clean, noisy, RATE_HZ), abs=0.5)


def loop_frames(samples: np.ndarray) -> list[np.ndarray]:
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, 481) / 481))
    return [window * samples[i * 120 : i * 120 + 480] for i in range(int(len(samples) / 120 - 4))]


def test_ssnr_is_the_mean_of_limited_frame_ratios():
    clean, noisy = synthetic_pair()
    pairs = zip(loop_frames(clean), loop_frames(noisy), strict=True)
    ratios = [10 * np.log10(np.sum(c**2) / np.sum((c - n) ** 2)) for c, n in pairs]
    assert min(ratios) < -10
    assert metrics.ssnr_db(clean, noisy) == pytest.approx(np.mean(np.clip(ratios, -10, 35)), abs=1e-6)


def test_llr_equals_the_ratio_of_prediction_errors_solved_directly():
    clean, noisy = synthetic_pair()
    ratios = []
    for c, n in zip(loop_frames(clean), loop_frames(noisy), strict=True):
        lags = [[np.dot(x[: len(x) - k], x[k:]) for k in range(17)] for x in (c, n)]
        a_clean, a_noisy = (np.concatenate([[1.0], -solve_toeplitz(r[:16], r[1:])]) for r in lags)
        matrix = toeplitz(lags[0])
        ratios.append(np.log((a_noisy @ matrix @ a_noisy) / (a_clean @ matrix @ a_clean)))
    expected = np.mean(sorted(ratios)[: round(0.95 * len(ratios))])
    assert expected > 0.5 and metrics.llr(clean, noisy) == pytest.approx(expected, rel=1e-6)


def test_slope_weights_find_the_nearest_peak():
    energy_db = np.array([[0.0, 2.0, 5.0, 4.0, 1.0, 3.0]])
    weights = composite_measures._slope_weights(energy_db, np.diff(energy_db))
    # Rising bands look up to the band below the peak (2 of 0, 2, 5), falling ones back to the peak itself (5).
    peaks = np.array([2.0, 2.0, 5.0, 5.0, 1.0])
    expected = 20 / (20 + 5.0 - energy_db[0, :-1]) / (1 + peaks - energy_db[0, :-1])
    np.testing.assert_allclose(weights[0], expected)


def test_division_hides_weak_bands():
    clean, noisy = synthetic_pair()
    standard = metrics.score(clean, noisy)
    divided = metrics.score(clean, noisy, composite_scale="divided")
    assert divided.csig > standard.csig and divided.cbak > standard.cbak and divided.covl > standard.covl
    assert (divided.wb_pesq, divided.ssnr_db) == (standard.wb_pesq, standard.ssnr_db)


def test_composite_is_limited_to_the_scale():
    assert metrics.composite(4.64, 0.0, 0.0, 35.0) == (5.0, 5.0, 5.0)
    assert metrics.composite(1.0, 10.0, 200.0, -10.0) == (1.0, 1.0, 1.0)
    assert metrics.composite(2.0, 0.5, 30.0, 5.0) == pytest.approx((3.5145, 2.695, 2.738))


@settings(deadline=None, max_examples=30)
@given(snr_db=st.floats(-30, 60), gain=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_si_sdr_is_the_ratio_of_orthogonal_parts_at_any_gain(snr_db, gain, seed):
    rng = np.random.default_rng(seed)
    clean, noise = rng.standard_normal((2, 4000))
    noise -= clean * (noise @ clean) / (clean @ clean)
    noise *= np.linalg.norm(clean) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)
    assert metrics.si_sdr_db(clean, gain * (clean + noise)) == pytest.approx(snr_db, abs=1e-6)


@settings(deadline=None, max_examples=10)
@given(gain=st.floats(0.05, 0.9), seed=st.integers(0, 9))
def test_stoi_and_llr_do_not_depend_on_the_level_of_the_judged_signal(gain, seed):
    clean, noisy = synthetic_pair(1.0, seed)
    assert metrics.stoi_percent(clean, gain * noisy) == pytest.approx(metrics.stoi_percent(clean, noisy), abs=1e-6)
    assert metrics.llr(clean, gain * noisy) == pytest.approx(metrics.llr(clean, noisy), abs=1e-6)


def test_equal_signals_get_the_best_values_and_a_failed_si_sdr():
    clean, _ = synthetic_pair()
    scores = metrics.score(clean, clean)
    assert scores.wb_pesq == pytest.approx(4.644, abs=1e-3)
    assert (scores.csig, scores.cbak, scores.covl) == (5.0, 5.0, 5.0)
    assert scores.stoi_percent == pytest.approx(100.0) and scores.ssnr_db == pytest.approx(35.0)
    assert math.isnan(scores.si_sdr_db) and list(scores.failures) == ["si_sdr_db"]
    assert "infinite" in scores.failures["si_sdr_db"]
    # A mere change of level is the same case.
    assert "infinite" in metrics.score(clean, 0.3 * clean).failures["si_sdr_db"]


def test_digital_silence_inside_a_recording_leaves_every_metric_finite():
    clean, noisy = synthetic_pair()
    clean[8000:16000] = 0.0
    noisy[12000:20000] = 0.0
    scores = metrics.score(clean, noisy)
    assert not scores.failures and all(math.isfinite(getattr(scores, name)) for name in metrics.METRICS)


@pytest.mark.parametrize(
    "change, failing, word",
    [
        (lambda clean, noisy: (0 * clean, noisy), set(metrics.METRICS) - {"ssnr_db"}, "silence"),
        (lambda clean, noisy: (clean, 0 * noisy), {"wb_pesq", "csig", "cbak", "covl", "si_sdr_db"}, "silence"),
        (lambda clean, noisy: (clean[:3900], noisy[:3900]), set(metrics.METRICS) - {"ssnr_db", "si_sdr_db"}, "quarter"),
        (lambda clean, noisy: (clean[:5500], noisy[:5500]), {"stoi_percent"}, "too little speech"),
        (lambda clean, noisy: (clean[:1], noisy[:1]), set(metrics.METRICS), "few"),
    ],
    ids=["silent reference", "silent output", "under a quarter second", "too little speech", "one sample"],
)
def test_metrics_without_a_value_are_nan_with_a_reason(change, failing, word):
    scores = metrics.score(*change(*synthetic_pair()))
    assert set(scores.failures) == failing
    assert {name for name in metrics.METRICS if math.isnan(getattr(scores, name))} == failing
    assert any(word in reason for reason in scores.failures.values())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda c, n: metrics.score(c, n, 8000), "16000"),
        (lambda c, n: metrics.score(c, n, composite_scale="half"), "composite_scale"),
        (lambda c, n: metrics.score(c, n[:-1]), "one length"),
        (lambda c, n: metrics.score(c[:, None], n[:, None]), "one length"),
        (lambda c, n: metrics.score(c, np.where(n > 0.1, np.nan, n)), "NaN"),
    ],
)
def test_unusable_input_is_one_clear_line(call, message):
    with pytest.raises(UserError, match=message):
        call(*synthetic_pair())
