"""Trains a network: `python train.py --config configs/paper.yaml --workdir runs/paper`. See `--help`."""

import sys

from saf_jax.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
