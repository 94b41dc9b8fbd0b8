"""What a network does to sounds that it was not trained for: other languages, music. A part of `model_card.py`.

A folder with `speech/LANGUAGE/` (clean recordings) and `music/`. Recordings that anyone can get: the Debian packages
asterisk-core-sounds-{en,es,fr,it,ru}-g722 (of the prompts of 4 to 12 s, at 8,000 bytes a second, the first 24
by path) and singularity-music (10 s of each piece from second 30 on), with ffmpeg to decode them to mono FLAC of 16 kHz
(`ffmpeg -f g722 -i PROMPT -ar 16000 FILE`, `ffmpeg -ss 30 -t 10 -i PIECE -ac 1 -ar 16000 FILE`).
"""

import tempfile
from pathlib import Path

import numpy as np

from saf_jax.audio import list_audio, read_mono
from saf_jax.data.mix_command import MixSettings, make_mixtures
from saf_jax.enhancement import Enhancer
from saf_jax.evaluation import evaluate
from saf_jax.metrics import score
from saf_jax.tables import number

RATIOS_DB = (0.0, 5.0, 10.0, 15.0)
METRICS = ("wb_pesq", "stoi_percent", "si_sdr_db")


def other_sounds(enhancer: Enhancer, weights: str | Path, folder: Path, noise: Path) -> str:
    """Markdown: languages clean and in noise, and how much quieter music comes out.

    Args:
      enhancer: the network.
      weights: the same, for the evaluation.
      folder: with `speech/LANGUAGE` and `music`.
      noise: folder of noise recordings that the training did not have.
    """
    rate = enhancer.config.stft.sample_rate_hz
    rows = []
    for place in sorted(path for path in (folder / "speech").iterdir() if path.is_dir()):
        clean = [read_mono(path, rate) for path in list_audio(place)]
        kept = [score(before, after, rate) for before, after in zip(clean, enhancer.many(clean, rate))]
        with tempfile.TemporaryDirectory() as temporary:
            mixed = Path(temporary) / "mixed"
            make_mixtures(MixSettings(place, noise, mixed, RATIOS_DB, turns=True))
            summary = evaluate(
                clean=mixed / "clean", noisy=mixed / "noisy", out=Path(temporary) / "results", weights=weights,
                keep_audio=False, quiet=True,
            )  # fmt: skip
        cells = [f"{np.mean([values.wb_pesq for values in kept]):.2f}", f"{np.mean([v.si_sdr_db for v in kept]):.1f}"]
        cells += [
            f"{number(metric, summary[f'noisy_{metric}'])} to {number(metric, summary[metric])}" for metric in METRICS
        ]
        rows.append(f"| {place.name} | {len(clean)} | {' | '.join(cells)} |")
    music = [read_mono(path, rate) for path in list_audio(folder / "music")]
    quieter = sorted(_level_db(before) - _level_db(after) for before, after in zip(music, enhancer.many(music, rate)))
    return "\n".join(
        [
            "\n### Other languages and music\n",
            "Clean: what comes out of clean speech. In noise: from noisy to enhanced, with the noise recordings of the "
            "first table, 0, 5, 10 and 15 dB by turns.\n",
            "| language | files | clean: WB-PESQ | clean: SI-SDR (dB) | WB-PESQ | STOI (%) | SI-SDR (dB) |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            f"\nMusic alone ({len(music)} pieces, 10 s each) comes out {np.median(quieter):.1f} dB quieter in the "
            f"median, from {quieter[0]:.1f} to {quieter[-1]:.1f} dB: it is taken for noise in parts.",
        ]
    )


def _level_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(max(float(np.mean(np.square(samples, dtype=np.float64))), 2.0**-46)))
