"""Scores enhanced speech: `python eval.py --weights NAME --clean DIR --noisy DIR --out DIR`. See `--help`."""

import sys

from saf_jax.cli import main

# Processes that score files import this module again.
if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
