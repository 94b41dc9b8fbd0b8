"""The command `train` (and train.py): flags in, `train_and_evaluate` behind."""

import argparse

from saf_jax.config import add_set_argument
from saf_jax.huge_pages import restart_with_huge_pages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a config file, or the name of one that comes with the package")
    parser.add_argument("--workdir", required=True, help="folder of the run; called again with it, training resumes")
    add_set_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    restart_with_huge_pages()
    from saf_jax.config import load_config
    from saf_jax.jit_cache import use_compilation_cache
    from saf_jax.training import train_and_evaluate

    use_compilation_cache()
    config = load_config(args.config, args.set)
    result = train_and_evaluate(config, args.workdir, quiet=args.quiet)
    loss = "" if result["valid_loss"] is None else f", validation loss {result['valid_loss']:.5f}"
    print(f"{args.workdir}: step {result['step']} of {result['steps']}{loss}")
    if result["preempted"]:
        print("stopped by SIGTERM; the same command resumes")
    return 0
