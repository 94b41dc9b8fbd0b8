"""Trains a network: `python train.py --config configs/paper.yaml --workdir runs/paper`. See `--help`."""

import sys

from saf_jax.cli import main

# Processes that prepare examples import this module again.
if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
