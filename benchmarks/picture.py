"""Draws the README's picture: spectrograms of a noisy recording, what shipped weights make of it, and the clean one.

    python benchmarks/picture.py NOISY CLEAN -o docs/spectrograms.png

NOISY and CLEAN are a pair of the test set of Voice Bank + DEMAND (CC BY 4.0).
"""

import argparse
from pathlib import Path

from PIL import Image

from saf_jax.audio import read_mono
from saf_jax.enhancement import Enhancer
from saf_jax.metrics import score
from saf_jax.pictures import save_spectrograms
from saf_jax.pretrained import DEFAULT, load_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("noisy", type=Path)
    parser.add_argument("clean", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--weights", default=DEFAULT)
    args = parser.parse_args()
    config, variables = load_weights(args.weights)
    rate = config.stft.sample_rate_hz
    noisy, clean = read_mono(args.noisy, rate), read_mono(args.clean, rate)
    signals = {"noisy": noisy, f"enhanced by {args.weights}": Enhancer(config, variables)(noisy, rate)}
    titled = {}
    for name, signal in signals.items():
        values = score(clean, signal, rate)
        titled[f"{name} (WB-PESQ {values.wb_pesq:.2f}, STOI {values.stoi_percent:.1f} %)"] = signal
    save_spectrograms(args.out, {**titled, "clean": clean}, rate)
    # Few colours and few points: every clone carries this file.
    with Image.open(args.out) as picture:
        size = round(picture.width * 0.8), round(picture.height * 0.8)
        small = picture.convert("RGB").resize(size).quantize(64, Image.Quantize.MAXCOVERAGE)
    small.save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
