"""The command `train` (and train.py): flags in, `train_and_evaluate` behind."""

import argparse
import sys

from saf_jax.config import add_set_argument
from saf_jax.errors import UserError
from saf_jax.huge_pages import restart_with_huge_pages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a config file, or the name of one that comes with the package")
    parser.add_argument("--workdir", required=True, help="folder of the run; called again with it, training resumes")
    add_set_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--tensorboard", action="store_true", help="the same as --set train.tensorboard=true")
    several = parser.add_argument_group("several processes that train together, each started with the same command")
    several.add_argument(
        "--distributed", action="store_true", help="take part as the cluster's environment says (Slurm, MPI, TPU, ...)"
    )
    several.add_argument("--coordinator", metavar="ADDRESS:PORT", help="without such an environment: the first process")
    several.add_argument("--process-count", type=int, metavar="N", help="number of processes")
    several.add_argument("--process-index", type=int, metavar="I", help="number of this process, from 0")


def run(args: argparse.Namespace) -> int:
    restart_with_huge_pages()
    from saf_jax import parallel
    from saf_jax.config import load_config
    from saf_jax.jit_cache import use_compilation_cache
    from saf_jax.training import train_and_evaluate

    config = load_config(args.config, [*args.set, *(["train.tensorboard=true"] if args.tensorboard else [])])
    _join_processes(args)
    use_compilation_cache()
    result = train_and_evaluate(config, args.workdir, quiet=args.quiet)
    if not parallel.is_main_process():
        return 0
    loss = "" if result["valid_loss"] is None else f", validation loss {result['valid_loss']:.5f}"
    print(f"{args.workdir}: step {result['step']} of {result['steps']}{loss}")
    if result["stopped_early"]:
        print(f"stopped early: no better for {config.train.early_stop} validations")
    if result["preempted"]:
        print("stopped by SIGTERM; the same command resumes")
    else:
        _write_report(args.workdir)
    return 0


def _write_report(workdir: str) -> None:
    from saf_jax.run_report import write_run_report

    try:
        print(f"curves, settings and validation files to hear: {write_run_report(workdir)}")
    except UserError as error:
        # The training is done and saved: a page that cannot be drawn here can be drawn elsewhere.
        print(f"no report: {error}", file=sys.stderr)


def _join_processes(args: argparse.Namespace) -> None:
    place = (args.coordinator, args.process_count, args.process_index)
    named = [value is not None for value in place]
    if any(named) and not all(named):
        raise UserError("--coordinator, --process-count and --process-index: give all three, or --distributed alone")
    if all(named) and not 0 <= args.process_index < args.process_count:
        raise UserError(f"--process-index {args.process_index}: must lie from 0 to {args.process_count - 1}")
    if args.distributed or all(named):
        from saf_jax.parallel import join_processes

        join_processes(*place)
