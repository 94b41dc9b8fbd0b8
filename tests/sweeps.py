"""Sweeps for tests: specs, plans, and runs that look as if they had been trained and scored."""

import json
from pathlib import Path

import networks
import yaml

from saf_jax.config import config_to_dict, load_config
from saf_jax.evaluation_summary import summarise
from saf_jax.metrics import METRICS
from saf_jax.results import NOISY_METRICS, FileResult, write_json, write_per_file
from saf_jax.sweep_data import ScoreSet, SweepData
from saf_jax.sweep_runs import FAILURE_FILE, RECORD_FILE, PlannedRun, plan_runs, scores_folder
from saf_jax.sweep_spec import Row, Spec

# The least network at 8 kHz: a run takes seconds, most of them for starting.
TINY = {f"model.{key}": value for key, value in config_to_dict(networks.least())["model"].items()} | {
    "stft.sample_rate_hz": 8000,
    "stft.window_samples": 80,
    "stft.hop_samples": 40,
    "model.frequency_stride": 4,
    "data.crop_seconds": 0.2,
    "train.batch_size": 4,
    "train.steps": 150,
    "train.warmup_steps": 0,
    "train.validate_every": 50,
    "train.log_every": 1,
}
ROWS = [{"name": "mask"}, {"name": "bias", "set": {"model.outputs": "bias"}}]


def write_spec(path: Path, **changes) -> Path:
    """Writes a spec of two tiny rows with one seed."""
    path.write_text(yaml.safe_dump({"title": "Tiny", "seeds": [0], "set": TINY, "rows": ROWS, **changes}))
    return path


def spec_of(*names: str) -> Spec:
    """A spec whose rows differ in the number of layers."""
    return Spec(
        title="Depth",
        question="How deep?",
        rows=tuple(Row(name, {"model.layers": number}) for number, name in enumerate(names, 1)),
        reference=names[0],
    )


def planned(workdir: Path, spec: Spec, seeds=(0, 1), sets=("dev",)) -> tuple[list[PlannedRun], tuple[ScoreSet, ...]]:
    """The runs of a spec, none of them there, and the sets that they are scored on."""
    scored = tuple(ScoreSet(name, f"{name}-1", workdir / name / "clean", workdir / name / "noisy") for name in sets)
    data = SweepData({}, scored, {}, {str(workdir): "WORKDIR"}, (), workdir / "data")
    rows = {row.name: row.set for row in spec.rows}
    return plan_runs(spec, "mine.yaml", load_config("paper"), rows, seeds, data, workdir, {}), scored


def write_scores(folder: Path, pesq: dict[str, float | None], reason: str = "no utterance", short: tuple = ()) -> None:
    """A finished evaluation: WB-PESQ by file, the other metrics 1.

    Args:
      folder: where it lies.
      pesq: None for files that could not be scored.
      reason: why not.
      short: files without a value of STOI.
    """
    files = []
    for file, value in pesq.items():
        values = dict.fromkeys((*METRICS, *NOISY_METRICS), 1.0) | {"wb_pesq": value, "noisy_wb_pesq": 1.5}
        failures = {}
        if value is None:
            values, failures = {}, {"file": reason}
        elif file in short:
            del values["stoi_percent"]
            failures = {"stoi_percent": "too short"}
        files.append(FileResult(file, values, failures=failures))
    folder.mkdir(parents=True, exist_ok=True)
    write_per_file(folder, files)
    write_json(folder / "summary.json", summarise(files, {}))


def finish(run: PlannedRun, scores: dict[ScoreSet, dict[str, float | None]], **record) -> None:
    """Makes a run look trained and scored."""
    write_log(run.folder, steps=40)
    write_json(
        run.folder / RECORD_FILE,
        {"seed": run.seed, "steps": 40, "parameters": 1000 * run.config.model.layers, "gmac_per_second": 0.25,
         "seconds": 12.0, "seconds_per_step": 0.3, "devices": "1 x cpu", "cores": 2, "commit": "abc123", **record},
    )  # fmt: skip
    for score_set, pesq in scores.items():
        write_scores(scores_folder(run, score_set), pesq)


def write_log(folder: Path, steps: int) -> None:
    """The log of a run that has come so far."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"event": "start", "step": 0}]
    for step in range(20, steps + 1, 20):
        entries += [
            {"event": "train", "step": step, "loss": 1 / step},
            {"event": "valid", "step": step, "valid_loss": 2 / step},
        ]
    lines = [json.dumps({"unix_seconds": 1000.0 + number, **entry}) for number, entry in enumerate(entries)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def fail(run: PlannedRun, reason: str) -> None:
    """Makes a run look failed."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / FAILURE_FILE, {"reason": reason, "status": 2})
