"""The process of one run of a sweep: trains, notes what it took, scores. `saf_jax.sweep_processes` starts it.

    python -m saf_jax.sweep_child --config paper --workdir RUN --score KEY CLEAN NOISY --set ...

It ends with status 75 when it was stopped and the same command goes on.
"""

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STOPPED = 75


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one training and its evaluations.

    Returns:
      Exit status: 0 done, 1 some files could not be scored, 2 a user's error, 75 stopped.
    """
    parser = argparse.ArgumentParser(prog="saf_jax.sweep_child")
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--score", nargs=3, action="append", default=[], metavar=("KEY", "CLEAN", "NOISY"))
    parser.add_argument("--cores", type=int, nargs="+", help="run on these only")
    parser.add_argument("--set", nargs="+", default=[])
    args = parser.parse_args(argv)
    if args.cores and hasattr(os, "sched_setaffinity"):
        # Before jax is imported: it makes as many threads as there are cores.
        os.sched_setaffinity(0, args.cores)
    from saf_jax.errors import UserError
    from saf_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    _end_with_parent()
    try:
        return _run(args)
    except UserError as error:
        print("error: " + " ".join(str(error).splitlines()), file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from saf_jax.config import load_config
    from saf_jax.jit_cache import use_compilation_cache
    from saf_jax.sweep_processes import locked
    from saf_jax.sweep_runs import SCORES_FOLDER, discard_damaged_scores, is_scored, is_trained, unscored_files

    config = load_config(args.config, args.set)
    use_compilation_cache()
    # Another sweep that wants the same run waits, and then finds it done.
    with locked(args.workdir / ".lock"):
        if not is_trained(args.workdir):
            from saf_jax.training import train_and_evaluate

            if train_and_evaluate(config, args.workdir, quiet=True)["preempted"]:
                return STOPPED
            _write_record(config, args)
        failed = 0
        for key, clean, noisy in args.score:
            out = args.workdir / SCORES_FOLDER / key
            if not is_scored(out) or unscored_files(out):
                from saf_jax.evaluation import evaluate

                discard_damaged_scores(out)
                summary = evaluate(
                    clean=clean, noisy=noisy, out=out, weights=args.workdir, keep_audio=False, quiet=True
                )
                failed += summary["failed"]
    return 1 if failed else 0


def _write_record(config: Any, args: argparse.Namespace) -> None:
    """Notes what the trained run is and what it took."""
    import jax
    import numpy as np

    from saf_jax import provenance
    from saf_jax.info import describe
    from saf_jax.results import write_json
    from saf_jax.run_log import curve, read_log, trained_seconds
    from saf_jax.sweep_runs import RECORD_FILE
    from saf_jax.worker_processes import usable_cores

    entries = read_log(args.workdir)
    speed = curve(entries, "train", "audio_seconds_per_second").values
    audio_seconds = config.train.batch_size * config.data.crop_seconds
    described = describe(config)
    write_json(
        args.workdir / RECORD_FILE,
        {
            "config": args.config,
            "overrides": args.set,
            "seed": config.train.seed,
            "steps": entries[-1]["step"],
            "parameters": described["parameters"],
            "gmac_per_second": described["gmac_per_second"],
            "seconds": round(trained_seconds(entries), 1),
            "starts": sum(entry["event"] == "start" for entry in entries),
            # The median: the first lines of the log hold compilation.
            "seconds_per_step": round(audio_seconds / float(np.median(speed)), 5) if len(speed) else None,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "cores": usable_cores(),
            "commit": provenance.commit(),
            "versions": provenance.versions(("jax", "flax", "optax", "numpy")),
        },
    )


def _end_with_parent() -> None:
    """Stops this process, as SIGTERM does, when the one that started it is gone: its end of stdin closes then."""
    import signal
    import stat

    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
