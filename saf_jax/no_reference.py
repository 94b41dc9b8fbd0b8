"""What can be said of recordings without a clean reference, before and after enhancement: estimates, nothing more."""

import argparse
import csv
import dataclasses
import io
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from saf_jax import audio, tables
from saf_jax.data.active_level import active_level_db
from saf_jax.errors import UserError
from saf_jax.evaluation_inputs import check_names
from saf_jax.files import make_folder, write_text
from saf_jax.results import ENHANCED, write_json

HEADING = "Estimates without a reference: they describe the recordings, they do not score an enhancement."

_FRAME_SECONDS = 0.02
_FLOOR_PERCENTILE = 10.0
_SPECTRUM_SIZE = 1024
_MOST_SPECTRA = 10_000
_BAND_EDGE_DB = 80.0
_CLIPPED_RUN = 3


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Estimates for one recording; None where there is nothing to estimate from (silence).

    Attributes:
      seconds: length.
      active_level_db: P.56 active level relative to full scale.
      noise_floor_db: level of the quiet frames (10th percentile over 20 ms frames) relative to full scale.
      snr_db: of the active level, less the floor, over the floor.
      clipped_percent: part of the samples that stand in runs of three and more at the recording's peak.
      bandwidth_hz: highest frequency whose strong moments lie within 80 dB of the strongest frequency's.
    """

    seconds: float
    active_level_db: float | None
    noise_floor_db: float | None
    snr_db: float | None
    clipped_percent: float
    bandwidth_hz: float | None


FIELDS = tuple(field.name for field in dataclasses.fields(Estimates))
_TITLES = {
    "seconds": "seconds",
    "active_level_db": "active level (dB)",
    "noise_floor_db": "noise floor (dB)",
    "snr_db": "SNR (dB)",
    "clipped_percent": "clipped (%)",
    "bandwidth_hz": "bandwidth (Hz)",
}


def estimate(samples: np.ndarray, sample_rate_hz: int) -> Estimates:
    """Estimates for a recording.

    Args:
      samples: float [N], full scale 1.
      sample_rate_hz: rate of `samples`.
    """
    samples = np.asarray(samples, np.float64)
    # An offset is heard by nobody, but would be the floor.
    centred = samples - samples.mean()
    active_db = active_level_db(centred, sample_rate_hz)
    floor_db = _noise_floor_db(centred, sample_rate_hz)
    speech_power = 10 ** (active_db / 10) - 10 ** (floor_db / 10)
    snr_db = 10 * math.log10(speech_power) - floor_db if speech_power > 0 and math.isfinite(floor_db) else math.nan
    return Estimates(
        seconds=round(len(samples) / sample_rate_hz, 3),
        active_level_db=_rounded(active_db),
        noise_floor_db=_rounded(floor_db),
        snr_db=_rounded(snr_db),
        clipped_percent=round(100 * _clipped_samples(samples) / len(samples), 4),
        bandwidth_hz=_bandwidth_hz(centred, sample_rate_hz),
    )


def _rounded(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None


def _noise_floor_db(samples: np.ndarray, sample_rate_hz: int) -> float:
    frame = max(1, round(_FRAME_SECONDS * sample_rate_hz))
    padded = samples if len(samples) >= frame else np.resize(samples, frame)
    power = np.square(padded[: len(padded) // frame * frame].reshape(-1, frame)).mean(axis=1)
    # Digital silence is an edit, not a floor.
    power = power[power > 0]
    return 10 * math.log10(np.percentile(power, _FLOOR_PERCENTILE)) if len(power) else -math.inf


def _clipped_samples(samples: np.ndarray) -> int:
    peak = np.abs(samples).max()
    if peak == 0:
        return 0
    # Clipped before a last gain or dither: not at full scale, and not all exactly equal.
    at_peak = np.abs(samples) >= 0.999 * peak
    edges = np.flatnonzero(np.diff(np.concatenate([[0], at_peak.astype(np.int8), [0]])))
    runs = edges[1::2] - edges[::2]
    return int(runs[runs >= _CLIPPED_RUN].sum())


def _bandwidth_hz(samples: np.ndarray, sample_rate_hz: int) -> float | None:
    if len(samples) < _SPECTRUM_SIZE:
        samples = np.pad(samples, (0, _SPECTRUM_SIZE - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, _SPECTRUM_SIZE)[:: _SPECTRUM_SIZE // 2]
    if len(frames) > _MOST_SPECTRA:
        # Of a long recording evenly spread ones: all of an hour would take gigabytes.
        frames = frames[np.linspace(0, len(frames) - 1, _MOST_SPECTRA).astype(int)]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(_SPECTRUM_SIZE), axis=1)))
    # Strong moments: consonants fill the high bands for a small part of the time.
    strong = np.percentile(power, 99, axis=0)
    if not strong.any():
        return None
    top = np.flatnonzero(strong > strong.max() * 10 ** (-_BAND_EDGE_DB / 10))[-1]
    return round(float(top) * sample_rate_hz / _SPECTRUM_SIZE)


def run(args: argparse.Namespace) -> int:
    """`saf-jax eval --no-reference DIR [--enhanced DIR | --weights NAME] [--out DIR]`."""
    for name in ("clean", "noisy", "log_file", "manifest"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} needs references: leave it out with --no-reference")
    for option, given in (
        ("--no-audio", args.no_audio),
        ("--composite-scale", args.composite_scale != "standard"),
        ("--name", args.name is not None),
        ("--jobs", args.jobs is not None),
    ):
        if given:
            raise UserError(f"{option} is of no use here: leave it out with --no-reference")
    if args.weights is not None and args.out is None:
        raise UserError("--out is missing: --weights writes enhanced files there")
    folder = Path(args.no_reference)
    before = audio.named_files(folder)
    check_names(before.values())
    after, failures = _after(args, before)
    rows: dict[str, dict[str, Estimates]] = {}
    for file, path in before.items():
        if file in failures:
            continue
        try:
            rows[file] = {"before": _estimate_file(path)}
            if file in after:
                rows[file]["after"] = _estimate_file(after[file])
        except (UserError, MemoryError) as error:
            rows.pop(file, None)
            failures[file] = str(error) if isinstance(error, UserError) else "is too long for the memory: cut it"
    print(format_text(rows))
    for file, reason in failures.items():
        print(f"failed: {file}: {reason}", file=sys.stderr)
    if args.out is not None:
        out = make_folder(args.out)
        write_text(out / "no_reference.csv", _format_csv(rows))
        plain = {
            file: {when: dataclasses.asdict(estimates) for when, estimates in entry.items()}
            for file, entry in rows.items()
        }
        write_json(out / "no_reference.json", {"note": HEADING, "files": plain, "failures": failures})
    return 1 if failures else 0


def _after(args: argparse.Namespace, before: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, str]]:
    """The enhanced versions, and reasons for those that are missing; both empty if none are wanted."""
    if args.weights is not None:
        from saf_jax.evaluation_network import Clock, check_targets, enhance_pairs, load_network, output_path

        made = Path(args.out) / ENHANCED
        pairs = [audio.Pair(file, path, path) for file, path in before.items()]
        check_targets(pairs, made)
        outcomes = list(enhance_pairs(load_network(args.weights), pairs, made, Clock()))
        failures = {outcome.file: outcome.failure for outcome in outcomes if outcome.failure}
        return {file: output_path(made, file) for file in before if file not in failures}, failures
    if args.enhanced is None:
        return {}, {}
    folder = Path(args.enhanced)
    found = audio.named_files(folder)
    if not found.keys() & before.keys():
        raise UserError(f"{folder}: no file is named like one in {args.no_reference}: give files of the same names")
    missing = {file: f"{folder / file}: no such enhanced file" for file in before.keys() - found.keys()}
    return {file: found[file] for file in before if file in found}, dict(sorted(missing.items()))


def _estimate_file(path: Path) -> Estimates:
    recording = audio.read(path)
    return estimate(recording.samples.mean(axis=1, dtype=np.float64), recording.sample_rate_hz)


def format_text(rows: Mapping[str, Mapping[str, Estimates]]) -> str:
    """Two lines a file, before and after, and the medians over the files."""
    lines: list[Sequence[str]] = [["file", "", *_TITLES.values()]]
    for file, entry in rows.items():
        for number, (when, estimates) in enumerate(entry.items()):
            lines.append(["" if number else file, when, *_cells(dataclasses.asdict(estimates))])
    for number, when in enumerate(("before", "after")):
        of = [dataclasses.asdict(entry[when]) for entry in rows.values() if when in entry]
        if of:
            medians = {name: _median([item[name] for item in of]) for name in FIELDS}
            lines.append(["" if number else f"median of {len(of)} files", when, *_cells(medians)])
    return "\n".join([HEADING, "", *tables.align(lines)]) + "\n"


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _cells(values: Mapping[str, float | None]) -> list[str]:
    digits = {"clipped_percent": 3, "bandwidth_hz": 0}
    return ["-" if values[name] is None else f"{values[name]:.{digits.get(name, 1)}f}" for name in FIELDS]


def _format_csv(rows: Mapping[str, Mapping[str, Estimates]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "when", *(f"estimated_{name}" for name in FIELDS)])
    for file, entry in rows.items():
        for when, estimates in entry.items():
            cells = dataclasses.asdict(estimates).values()
            writer.writerow([file, when, *("" if value is None else value for value in cells)])
    return text.getvalue()
