"""Exports a trained network as shipped weights and writes the measured part of its model card.

    python benchmarks/model_card.py RUN --name saf-tiny --audio DIR [--others DIR] [--tests]

Without --tests only recordings that a training may be guided by are scored (DIR/dev), and the figures are printed. With
--tests the weights go to saf_jax/weights/NAME.safetensors, the test sets are scored, and the card NAME.md beside them
gets the figures between its two marks, the head, and a line in its log of scorings; all else in the card is written by
hand. A RUN that is NAME's file itself is scored as it is.
"""

import argparse
import datetime
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from other_sounds import other_sounds

from saf_jax import provenance
from saf_jax.audio import list_audio, read_mono
from saf_jax.data.mix_command import MixSettings, make_mixtures
from saf_jax.enhancement import Enhancer
from saf_jax.evaluation import evaluate
from saf_jax.files import write_text
from saf_jax.metrics import METRICS, score, si_sdr_db
from saf_jax.pretrained import load_weights, save_weights, shipped_path
from saf_jax.tables import TITLES, number

BEGIN, END = "<!-- measured: benchmarks/model_card.py -->", "<!-- end -->"
SHORT = ("wb_pesq", "ssnr_db", "stoi_percent", "si_sdr_db")
MIXED_RATIOS = (0.0, 5.0, 10.0, 15.0)
MOST_FILES = 24
RUMBLE_HZ = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a training run, or a weights file")
    parser.add_argument("--name", required=True)
    parser.add_argument(
        "--audio", type=Path, required=True, help="folder with dev, test, voicebank_demand, dns_no_reverb"
    )
    parser.add_argument("--tests", action="store_true", help="export, score the test sets and write the card")
    parser.add_argument("--others", type=Path, metavar="DIR", help="other languages and music, see other_sounds.py")
    args = parser.parse_args()
    config, variables = load_weights(args.run)
    card = shipped_path(args.name).with_suffix(".md")
    if args.tests and not (card.is_file() and BEGIN in card.read_text(encoding="utf-8")):
        raise SystemExit(f"{card}: write the card first, with a head and the marks that the figures go between")
    with tempfile.TemporaryDirectory() as folder:
        parts = [behaviour(Enhancer(config, variables), args.audio)]
        mixed = mix(args.audio / "dev", Path(folder) / "dev")
        parts.append(
            set_tables("Mixtures of held-out speakers and noises", scored(args.run, mixed, Path(folder) / "r0"))
        )
        if args.others:
            others = other_sounds(Enhancer(config, variables), args.run, args.others, args.audio / "dev" / "noise")
        if not args.tests:
            parts += [others] if args.others else []
            print("\n".join(parts))
            return
        path = shipped_path(args.name)
        if Path(args.run).resolve() != path.resolve():
            save_weights(path, config, variables)
            path.chmod(0o644)
        sets = {
            "Test set of Voice Bank + DEMAND": args.audio / "voicebank_demand" / "test",
            "DNS Challenge 2020, no reverberation": args.audio / "dns_no_reverb",
            "Mixtures of test speakers and noises": mix(args.audio / "test", Path(folder) / "test"),
        }
        results = {
            title: scored(path, pairs, Path(folder) / f"r{n}") for n, (title, pairs) in enumerate(sets.items(), 1)
        }
    parts += [set_tables(title, summary) for title, summary in results.items()]
    parts += [others] if args.others else []
    first = results["Test set of Voice Bank + DEMAND"]
    head = {
        f"wb_pesq_voicebank{first['files']}": round(first["wb_pesq"], 3),
        f"noisy_wb_pesq_voicebank{first['files']}": round(first["noisy_wb_pesq"], 3),
    }
    files = "; ".join(f"{title}, {summary['files']} files" for title, summary in results.items())
    line = f"| {datetime.date.today()} | {provenance.commit()} | {first['weights_hash'][:8]} | {files} |"
    write_text(card, renewed(card.read_text(encoding="utf-8"), head, "\n".join(parts), line))
    print(f"{card}: {first['wb_pesq']:.3f} (noisy {first['noisy_wb_pesq']:.3f})")


def mix(folder: Path, out: Path) -> Path:
    """Mixtures of a folder's `clean` and `noise`: each file at one ratio, by turns."""
    make_mixtures(MixSettings(folder / "clean", folder / "noise", out, MIXED_RATIOS, turns=True))
    return out


def scored(weights: str | Path, pairs: Path, out: Path) -> dict[str, Any]:
    """The evaluation's summary."""
    return evaluate(
        clean=pairs / "clean", noisy=pairs / "noisy", out=out, weights=weights, keep_audio=False, quiet=True
    )


def behaviour(enhancer: Enhancer, audio: Path) -> str:
    """What becomes of clean speech, noise alone and silence: lines of text."""
    rate = enhancer.config.stft.sample_rate_hz
    speech, noise = (
        [read_mono(path, rate) for path in list_audio(audio / "dev" / kind)[:MOST_FILES]] for kind in ("clean", "noise")
    )
    spoken = enhancer.many(speech, rate)
    kept = [score(clean, output, rate) for clean, output in zip(speech, spoken)]
    pesq, sdr = ([getattr(values, name) for values in kept] for name in ("wb_pesq", "si_sdr_db"))
    voiced = [
        si_sdr_db(without_rumble(clean, rate), without_rumble(output, rate)) for clean, output in zip(speech, spoken)
    ]
    quieter = [level_db(before) - level_db(after) for before, after in zip(noise, enhancer.many(noise, rate))]
    silent = np.abs(enhancer(np.zeros(2 * rate, np.float32), rate)).max()
    return "\n".join(
        [
            f"- Clean speech ({len(pesq)} recordings of held-out speakers): WB-PESQ of the output {np.mean(pesq):.2f} "
            f"in the mean, the worst {min(pesq):.2f}; SI-SDR {np.mean(sdr):.1f} dB, the worst {min(sdr):.1f}; of what "
            f"lies above {RUMBLE_HZ} Hz, {np.mean(voiced):.1f} dB, the worst {min(voiced):.1f}.",
            f"- Noise alone ({len(quieter)} held-out recordings): {np.mean(quieter):.1f} dB quieter in the mean, "
            f"the worst {min(quieter):.1f} dB.",
            f"- Silence: the largest sample of the output is {silent:g}.",
        ]
    )


def without_rumble(samples: np.ndarray, rate: int) -> np.ndarray:
    """float [N] -> the same without the rumble below the voice, which networks take out of clean recordings."""
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / rate) < RUMBLE_HZ] = 0
    return np.fft.irfft(spectrum, len(samples))


def level_db(samples: np.ndarray) -> float:
    """Mean power in dB; that of the smallest step of 24 bits for silence."""
    return float(10 * np.log10(max(float(np.mean(np.square(samples, dtype=np.float64))), 2.0**-46)))


def set_tables(title: str, summary: dict[str, Any]) -> str:
    """A set's scores with 95 % intervals, and short tables of its kinds of noise and ratios, as markdown."""
    rows = [["", *(TITLES[metric] for metric in METRICS)]]
    for name, prefix in (("noisy", "noisy_"), ("enhanced", "")):
        cells = []
        for metric in METRICS:
            low, high = (number(metric, value) for value in summary["intervals"][f"{prefix}{metric}"])
            cells.append(f"{number(metric, summary[f'{prefix}{metric}'])} ({low} to {high})")
        rows.append([name, *cells])
    text = [f"\n### {title}: {summary['files']} files\n", *markdown(rows)]
    for key, groups in summary["breakdowns"].items():
        if key == "speaker":
            continue
        rows = [[key.replace("_", " "), "files", "noisy WB-PESQ", *(TITLES[metric] for metric in SHORT)]]
        for group in groups:
            values = [number(metric, group[metric]) for metric in SHORT]
            rows.append([group["group"], str(group["files"]), number("wb_pesq", group["noisy_wb_pesq"]), *values])
        text += ["", *markdown(rows)]
    return "\n".join(text)


def markdown(rows: list[list[str]]) -> list[str]:
    """Lines of a table whose first row is the heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def renewed(text: str, head: dict[str, Any], measured: str, line: str) -> str:
    """The card with new figures in its head and between its marks, and a line more in the log at its end."""
    _, front, body = text.split("---\n", 2)
    before, _, rest = body.partition(BEGIN)
    _, _, after = rest.partition(END)
    front = yaml.safe_dump({**yaml.safe_load(front), **head}, sort_keys=False, width=1000)
    return f"---\n{front}---\n{before}{BEGIN}\n\n{measured}\n\n{END}{after.rstrip()}\n{line}\n"


if __name__ == "__main__":
    main()
