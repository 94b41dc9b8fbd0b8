"""The command eval and what it leaves behind, on small synthetic sets and on the real test pairs."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pairs import RATE_HZ, write_pairs

from saf_jax import audio, scoring
from saf_jax.cli import main
from saf_jax.errors import UserError
from saf_jax.evaluation import evaluate
from saf_jax.metrics import METRICS
from saf_jax.results import read_results

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """A folder with clean, noisy and enhanced versions of six files, and their log."""
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def record_scoring(monkeypatch) -> list[scoring.Task]:
    """What is scored from now on; in this process, which saves the start of others."""
    seen = []

    def recording(tasks, jobs):
        seen.extend(tasks)
        return map(scoring.score_task, tasks)

    monkeypatch.setattr("saf_jax.evaluation.score_all", recording)
    return seen


@pytest.fixture
def copy(pairs, tmp_path) -> Path:
    """The same, free to be damaged."""
    return Path(shutil.copytree(pairs, tmp_path / "pairs"))


def call(root: Path, out: Path, *more: str) -> int:
    folders = ["--clean", str(root / "clean"), "--noisy", str(root / "noisy"), "--out", str(out), "--jobs", "2"]
    enhanced = [] if {"--weights", "--enhanced"} & set(more) else ["--enhanced", str(root / "enhanced")]
    return main(["eval", *folders, *enhanced, *more])


def summary_of(out: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((out / "summary.json").read_text(), parse_constant=refuse)


def test_results_hold_every_file_the_means_and_the_tables(pairs, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(pairs, out, "--log-file", str(pairs / "log.txt"), "--name", "a_model") == 0
    with (out / "per_file.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0])[:8] == ["file", *METRICS] and [row["file"] for row in rows] == [f"s{i}" for i in range(6)]
    summary = summary_of(out)
    assert (summary["files"], summary["failed"], summary["name"]) == (6, 0, "a_model")
    for metric in METRICS:
        assert summary[metric] == pytest.approx(np.mean([float(row[metric]) for row in rows]), abs=1e-9)
        low, high = summary["intervals"][metric]
        assert low <= summary[metric] <= high and summary[metric] > summary[f"noisy_{metric}"]
    assert "--log-file" in summary["command"] and summary["versions"]["pesq"]
    printed = capsys.readouterr().out
    assert f"{summary['wb_pesq']:.3f}" in printed and "SAF (the paper)" in printed
    for name in ("table.txt", "table.csv", "table.md", "table.tex"):
        assert f"{summary['wb_pesq']:.3f}" in (out / name).read_text(), name
        assert (r"a\_model" if name.endswith("tex") else "a_model") in (out / name).read_text()

    groups = {group["group"]: group for group in summary["breakdowns"]["noise"]}
    assert {name: group["files"] for name, group in groups.items()} == {"bus": 3, "cafe": 3}
    buses = [float(row["ssnr_db"]) for row in rows if row["condition_noise"] == "bus"]
    assert groups["bus"]["ssnr_db"] == pytest.approx(np.mean(buses))
    assert [group["group"] for group in summary["breakdowns"]["snr_db"]] == ["2.5", "7.5"]
    assert read_results(out).conditions["s0"] == {"noise": "cafe", "snr_db": "2.5"}


def test_second_call_scores_only_what_is_missing_or_changed(copy, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    call(copy, out)
    first = summary_of(out)
    seen = record_scoring(monkeypatch)
    call(copy, out)
    assert not seen and "6 of 6 files are scored already" in capsys.readouterr().err
    assert {name: summary_of(out)[name] for name in METRICS} == {name: first[name] for name in METRICS}
    # One row lost, one input replaced, the rest untouched.
    lines = (out / "per_file.csv").read_text().splitlines()
    (out / "per_file.csv").write_text("\n".join(line for line in lines if not line.startswith("s1,")) + "\n")
    shutil.copy(copy / "noisy" / "s4.wav", copy / "enhanced" / "s4.wav")
    call(copy, out)
    assert [task.file for task in seen] == ["s1", "s4"]
    assert summary_of(out)["wb_pesq"] < first["wb_pesq"]
    # Another setting makes all of them stale.
    seen.clear()
    call(copy, out, "--composite-scale", "divided")
    assert len(seen) == 6 and summary_of(out)["csig"] > first["csig"]
    assert "†" in (out / "table.txt").read_text().split("(measured)")[1]


def test_killed_in_the_middle_it_goes_on(pairs, tmp_path):
    many, out = tmp_path / "many", tmp_path / "out"
    for side in ("clean", "noisy", "enhanced"):
        for i in range(60):
            target = many / side / f"f{i:02d}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(pairs / side / f"s{i % 6}.wav")
    # Saves soon, so that on a fast machine too it is killed between the first files and the last.
    code = (
        "import sys, saf_jax.evaluation as e, saf_jax.cli as c; e._SAVE_SECONDS = 0.1; sys.exit(c.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "eval", "--jobs", "1", "--out", str(out)]
    for side in ("clean", "noisy", "enhanced"):
        command += [f"--{side}", str(many / side)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (out / "per_file.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = len((out / "per_file.csv").read_text().splitlines()) - 1
    assert 0 < saved < 60 and not (out / "summary.json").exists()
    with pytest.raises(UserError, match="run the same"):
        read_results(out)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert f"{saved} of 60 files are scored already" in done.stderr
    assert summary_of(out)["scored_now"] == 60 - saved and summary_of(out)["files"] == 60


def test_bad_files_are_named_counted_and_leave_the_others_alone(copy, tmp_path, capsys, monkeypatch):
    record_scoring(monkeypatch)
    (copy / "enhanced" / "s0.wav").write_bytes(b"not audio")
    short = audio.read(copy / "enhanced" / "s1.wav")
    audio.write(copy / "enhanced" / "s1.wav", short._replace(samples=short.samples[:-400]))  # 1.7 % of 24000
    (copy / "enhanced" / "s2.wav").unlink()
    audio.write(copy / "clean" / "s3.wav", audio.Audio(np.zeros(24000, np.float32), RATE_HZ))
    audio.write(copy / "enhanced" / "s4.wav", audio.Audio(np.zeros(24000, np.float32), RATE_HZ))
    out = tmp_path / "out"
    assert call(copy, out) == 1
    summary = summary_of(out)
    assert (summary["files"], summary["failed"]) == (6, 4)
    reasons = {item["file"]: item["reason"] for item in summary["failures"] if item["metric"] is None}
    told = capsys.readouterr().err
    for file, words in {"s0": "read as audio", "s1": "more than 1 %", "s2": "no such", "s3": "silence"}.items():
        assert words in reasons[file] and f"failed: {file}: {reasons[file]}" in told
    # A silent output: no PESQ, yet the metrics that have a value count.
    assert summary["failed_metrics"]["wb_pesq"] == 1 and summary["counted"]["ssnr_db"] == 2
    alone = tmp_path / "alone"
    for side in ("clean", "noisy", "enhanced"):
        (alone / side).mkdir(parents=True)
        shutil.copy(copy / side / "s5.wav", alone / side / "s5.wav")
    call(alone, tmp_path / "out2")
    assert summary["wb_pesq"] == summary_of(tmp_path / "out2")["wb_pesq"]
    # Mended, the same command scores what had failed.
    audio.write(copy / "enhanced" / "s2.wav", audio.read(copy / "noisy" / "s2.wav"))
    assert call(copy, out) == 1 and summary_of(out)["failed"] == 3


def test_lengths_within_one_percent_are_trimmed_and_said(copy, tmp_path, capsys, monkeypatch):
    record_scoring(monkeypatch)
    longer = audio.read(copy / "enhanced" / "s1.wav")
    padded = np.concatenate([longer.samples, np.zeros((100, 1), np.float32)])
    audio.write(copy / "enhanced" / "s1.wav", longer._replace(samples=padded))
    assert call(copy, tmp_path / "out") == 0
    assert "1 files were of unequal lengths" in capsys.readouterr().err
    assert any("at most 100 samples" in line for line in summary_of(tmp_path / "out")["warnings"])
    assert {file.file: file.trimmed_samples for file in read_results(tmp_path / "out").files}["s1"] == 100


def test_other_rates_and_channels_are_scored_at_16_khz(copy, tmp_path, monkeypatch):
    record_scoring(monkeypatch)
    recording = audio.read(copy / "enhanced" / "s0.wav")
    stereo = np.repeat(audio.resample(recording.samples, RATE_HZ, 48000), 2, axis=1)
    audio.write(copy / "enhanced" / "s0.wav", audio.Audio(stereo, 48000, subtype="FLOAT"))
    assert call(copy, tmp_path / "out") == 0

    mine = {file.file: file.values for file in read_results(tmp_path / "out").files}
    assert mine["s0"]["si_sdr_db"] > mine["s0"]["noisy_si_sdr_db"] + 8


def test_clean_against_clean_is_valid_json_with_a_failed_si_sdr(pairs, tmp_path, monkeypatch):
    record_scoring(monkeypatch)
    assert call(pairs, tmp_path / "out", "--enhanced", str(pairs / "clean")) == 0
    summary = summary_of(tmp_path / "out")
    assert summary["wb_pesq"] == pytest.approx(4.64, abs=0.005) and summary["stoi_percent"] == pytest.approx(100)
    assert summary["si_sdr_db"] is None and summary["failed"] == 0 and summary["failed_metrics"] == {"si_sdr_db": 6}
    assert {item["metric"] for item in summary["failures"]} == {"si_sdr_db"}
    assert "infinite" in summary["failures"][0]["reason"]


def test_swapped_folders_are_noticed(pairs, tmp_path, capsys, monkeypatch):
    record_scoring(monkeypatch)
    folders = ["--clean", str(pairs / "noisy"), "--noisy", str(pairs / "clean"), "--enhanced", str(pairs / "enhanced")]
    main(["eval", *folders, "--out", str(tmp_path / "out"), "--jobs", "1"])
    assert "swapped?" in capsys.readouterr().err
    assert any("swapped?" in line for line in summary_of(tmp_path / "out")["warnings"])
    call(pairs, tmp_path / "right")
    assert summary_of(tmp_path / "right")["warnings"] == []


def die_on_s1(task):
    """Stands in for a fault in native code."""
    if task.file == "s1":
        os.kill(os.getpid(), signal.SIGSEGV)
    return scoring.score_task(task)


def test_a_process_that_dies_costs_one_file(pairs, tmp_path, monkeypatch):
    tasks = [
        scoring.Task(f"s{i}", pairs / "clean" / f"s{i}.wav", pairs / "noisy" / f"s{i}.wav",
                     pairs / "enhanced" / f"s{i}.wav", "", "standard", "x")
        for i in range(3)
    ]  # fmt: skip
    submit = ProcessPoolExecutor.submit
    monkeypatch.setattr(ProcessPoolExecutor, "submit", lambda pool, _, task: submit(pool, die_on_s1, task))
    results = {result.file: result for result in scoring.score_all(tasks, 1)}
    assert sorted(results) == ["s0", "s1", "s2"]
    assert [name for name, result in results.items() if result.failed] == ["s1"]
    assert "process died" in results["s1"].failures["file"]


def test_scoring_processes_do_not_import_jax():
    code = "import sys; import saf_jax.scoring; sys.exit(any(m.split('.')[0] in ('jax', 'flax') for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--enhanced", "{root}/nowhere"], "nowhere: no such folder"),
        (["--enhanced", "{root}/other"], "named like a clean one"),
        (["--log-file", "{root}/nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--log-file", "{root}/bad.txt"], "line 1"),
        (["--log-file", "{root}/strangers.txt"], "names none of the files"),
        (["--manifest", "{root}/bad.txt"], "needs a column 'file'"),
        (["--jobs", "0"], "--jobs 0"),
        (["--weights", "nowhere"], "nowhere"),
    ],
)
def test_unusable_arguments_end_in_one_line(arguments, message, copy, tmp_path, capsys):
    (copy / "bad.txt").write_text("three words and more\n")
    (copy / "strangers.txt").write_text("p999_001 bus 2.5\n")
    audio.write(copy / "other" / "x.wav", audio.Audio(np.ones(100, np.float32) / 2, RATE_HZ))
    assert call(copy, tmp_path / "out", *(item.format(root=copy) for item in arguments)) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "out" / "summary.json").exists()


def test_two_enhanced_files_of_one_name_are_refused(copy, tmp_path, capsys):
    audio.write(copy / "enhanced" / "s1.flac", audio.read(copy / "enhanced" / "s1.wav"))
    assert call(copy, tmp_path / "out") == 2
    assert "have the same name without ending" in capsys.readouterr().err


def test_names_that_are_not_utf_8_are_refused(copy, tmp_path, capsys):
    for side in ("clean", "noisy", "enhanced"):
        (copy / side / "s1.wav").rename(copy / side / os.fsdecode(b"caf\xe9.wav"))
    assert call(copy, tmp_path / "out") == 2
    assert "caf\\udce9.wav: its name is not UTF-8" in capsys.readouterr().err


def test_missing_partner_is_named(copy, tmp_path):
    (copy / "noisy" / "s3.wav").unlink()
    with pytest.raises(UserError, match=r"s3\.wav: has no partner"):
        evaluate(clean=copy / "clean", noisy=copy / "noisy", enhanced=copy / "enhanced", out=tmp_path / "out")


def test_the_real_test_pairs_give_the_known_figures(audio_root, tmp_path):
    root = audio_root / "voicebank_demand" / "test"
    out = tmp_path / "out"
    assert call(root, out, "--enhanced", str(root / "noisy")) == 0
    printed = (out / "table.txt").read_text().splitlines()
    row = next(line for line in printed if line.startswith("noisy (measured)")).split()
    assert row[4:] == ["1.841", "3.211", "2.419", "2.502", "2.17", "91.98", "7.89"]
    summary = summary_of(out)
    assert summary["files"] == 59 and summary["wb_pesq"] == summary["noisy_wb_pesq"]
    assert all(math.isfinite(summary[name]) for name in METRICS)
    assert {group["group"] for group in summary["breakdowns"]["measured_snr_db"]} == {
        "0 to 5", "5 to 10", "10 to 15", "15 and more",
    }  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[Path]:
    """Two untrained networks at 16 kHz, as small as they come, as files."""
    import networks

    from saf_jax.config import STFTConfig
    from saf_jax.pretrained import save_weights

    config = networks.least(stft=STFTConfig())
    paths = []
    for seed in (0, 1):
        paths.append(tmp_path_factory.mktemp("weights") / f"net{seed}.safetensors")
        save_weights(paths[-1], config, networks.net_variables(config, seed))
    return paths


def test_weights_score_exactly_the_files_that_are_written(pairs, weights, tmp_path, monkeypatch):
    record_scoring(monkeypatch)
    out = tmp_path / "out"
    assert call(pairs, out, "--weights", str(weights[0])) == 0
    written = audio.read(out / "enhanced" / "s0.wav")
    assert (written.sample_rate_hz, written.subtype, len(written.samples)) == (RATE_HZ, "PCM_16", 24000)
    summary = summary_of(out)
    assert summary["name"] == "net0" and summary["parameters"] > 100 and summary["gmac_per_second"] > 0
    assert summary["seconds"]["network"] > 0 and summary["seconds"]["network_audio"] == pytest.approx(9.0)
    assert summary["config"]["model"]["width"] == 4
    call(pairs, tmp_path / "again", "--enhanced", str(out / "enhanced"))
    assert {name: summary_of(tmp_path / "again")[name] for name in METRICS} == {name: summary[name] for name in METRICS}


def test_weights_that_change_are_noticed_and_audio_need_not_stay(pairs, weights, tmp_path, monkeypatch):
    seen, out = record_scoring(monkeypatch), tmp_path / "out"
    call(pairs, out, "--weights", str(weights[0]), "--no-audio")
    first = summary_of(out)
    assert len(seen) == 6 and not list(out.rglob("*.wav")) and first["folders"]["enhanced"] is None
    seen.clear()
    call(pairs, out, "--weights", str(weights[0]), "--no-audio")
    assert not seen and summary_of(out)["seconds"]["network_audio"] == 0
    call(pairs, out, "--weights", str(weights[1]))
    assert len(seen) == 6 and summary_of(out)["si_sdr_db"] != first["si_sdr_db"]
    # One enhanced file lost: it alone is made again.
    (out / "enhanced" / "s2.wav").unlink()
    seen.clear()
    call(pairs, out, "--weights", str(weights[1]))
    assert [task.file for task in seen] == ["s2"]
    assert summary_of(out)["seconds"]["network_audio"] == pytest.approx(1.5)


def test_files_of_others_are_not_replaced(copy, weights, tmp_path, monkeypatch, capsys):
    record_scoring(monkeypatch)
    out, options = tmp_path / "out", ("--weights", str(weights[0]))
    foreign = out / "enhanced" / "s1.wav"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    assert call(copy, out, *options) == 2
    assert f"{foreign}: was not made by an earlier call" in capsys.readouterr().err
    assert foreign.read_text() == "mine" and not (out / "enhanced" / "s0.wav").exists()
    foreign.unlink()
    assert call(copy, out, *options) == call(copy, out, *options) == 0
    # Nor the recordings themselves, be they what an earlier call made.
    before = (out / "enhanced" / "s0.wav").read_bytes()
    assert call(copy, out, *options, "--noisy", str(out / "enhanced")) == 2
    assert "s0.wav: lies where enhanced files are written" in capsys.readouterr().err
    assert (out / "enhanced" / "s0.wav").read_bytes() == before


def test_runs_keep_their_whole_names(pairs, weights, tmp_path, monkeypatch):
    from saf_jax.pretrained import load_weights

    record_scoring(monkeypatch)
    monkeypatch.setattr("saf_jax.pretrained.load_weights", lambda run: load_weights(weights[0]))
    assert call(pairs, tmp_path / "out", "--weights", "runs/lr0.001/", "--no-audio") == 0
    assert summary_of(tmp_path / "out")["name"] == "lr0.001"


def test_a_mistyped_option_leaves_finished_results_alone(pairs, tmp_path, monkeypatch):
    record_scoring(monkeypatch)
    out = tmp_path / "out"
    call(pairs, out)
    before = summary_of(out)
    assert call(pairs, out, "--weights", "nowhere") == 2 and call(pairs, out, "--enhanced", "nowhere") == 2
    assert summary_of(out) == before
