"""`saf-jax sweep SPEC`: trains and scores a table of settings with several seeds, and compares its rows."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saf_jax.config import add_set_argument
from saf_jax.errors import UserError

_STOPPED = 75


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", help="a spec, or the name of one that comes with the package, such as phase")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the sweep; several specs share it")
    parser.add_argument("--budget", default="small", help="how large the runs are: small (2 CPU cores), paper (GPUs)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, each on its part of the cores")
    parser.add_argument("--shard", metavar="I/N", help="of N machines this is number I: it does its part of the runs")
    parser.add_argument("--seeds", metavar="A,B", help="instead of the spec's or the budget's")
    parser.add_argument(
        "--audio", metavar="DIR", help="recordings: train/clean, train/noise, dev/clean, ... (default: SAF_AUDIO)"
    )
    parser.add_argument(
        "--test", nargs=3, action="append", default=[], metavar=("NAME", "CLEAN", "NOISY"),
        help="score on these pairs too",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what of them is there")
    parser.add_argument("--table", action="store_true", help="train nothing: the table of what is there")
    add_set_argument(parser)


def run(args: argparse.Namespace) -> int:
    from saf_jax.metrics import check_packages
    from saf_jax.report_page import check_packages as check_page_packages
    from saf_jax.sweep_runs import share, state_of

    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    index, count = _shard(args.shard)
    check_packages()
    check_page_packages()
    plan = _plan(args)
    states = {run: state_of(run, plan.data.sets) for run in plan.runs}
    if args.dry_run:
        for run, state in states.items():
            print(f"{run.name}: {state} ({run.folder})")
        done = sum(state.done for state in states.values())
        print(f"{done} of {len(states)} runs are done; scored on {', '.join(item.name for item in plan.data.sets)}")
        return 0
    stopped = None
    if not args.table:
        todo = [run for run in share(plan.runs, index, count) if not states[run].done]
        stopped = _do(todo, plan, args.jobs)
    table = _report(plan, args)
    if stopped is not None:
        print("stopped; the same command goes on", file=sys.stderr)
        return 128 + stopped
    return 1 if table["failed"] else 0


class _Plan:
    """What a call asks for: the spec, its data and its runs."""

    def __init__(self, name: str, spec: Any, data: Any, runs: list, workdir: Path):
        self.name, self.spec, self.data, self.runs, self.workdir = name, spec, data, runs, workdir


def _plan(args: argparse.Namespace) -> _Plan:
    import dataclasses

    from saf_jax.config import Config, load_config
    from saf_jax.sweep_data import audio_folder, plan_data
    from saf_jax.sweep_runs import plan_runs
    from saf_jax.sweep_spec import (
        TestSet,
        changed_settings,
        load_budget,
        load_spec,
        own_data,
        parse_overrides,
        settings_of,
        varied_keys,
    )

    name, spec = load_spec(args.spec)
    budget = load_budget(args.budget)
    given = parse_overrides(args.set)
    if clash := sorted(varied_keys(spec) & given.keys()):
        raise UserError(f"--set {clash[0]}: is what the rows of {args.spec} differ in: change the spec instead")
    if "train.seed" in given:
        raise UserError("--set train.seed: name the seeds with --seeds")
    seeds = _seeds(args.seeds) or spec.seeds or budget.seeds
    workdir = Path(args.workdir).absolute()
    tests = tuple(
        TestSet(name, str(Path(clean).absolute()), str(Path(noisy).absolute())) for name, clean, noisy in args.test
    )
    spec = dataclasses.replace(spec, tests=(*spec.tests, *tests))
    base = load_config(spec.base)
    # Recordings that the base config names count like those that the call names.
    named = {key: value for key, value in changed_settings(base, Config()).items() if key.startswith("data.")}
    shared = {**named, **budget.set, **spec.set, **spec.budgets.get(args.budget, {}), **given}
    data = plan_data(workdir, audio_folder(args.audio), budget, shared, [row.noise for row in spec.rows], spec.tests)
    rows = {
        row.name: {
            **settings_of(spec, row, args.budget, budget),
            **given,
            **data.settings_for(row.noise),
            **own_data(row, args.budget),
        }
        for row in spec.rows
    }
    usual = {**budget.set, **data.settings}
    return _Plan(name, spec, data, plan_runs(spec, args.spec, base, rows, seeds, data, workdir, usual), workdir)


def _do(todo: Sequence[Any], plan: _Plan, jobs: int) -> int | None:
    """Trains and scores what is missing; returns the signal that ended it early, if one did."""
    from saf_jax.results import write_json
    from saf_jax.sweep_processes import Stop, Task, describe_status, python_command, run_tasks, slots
    from saf_jax.sweep_progress import SweepProgress
    from saf_jax.sweep_runs import FAILURE_FILE, OUTPUT_FILE, state_of
    from saf_jax.sweep_spec import as_overrides

    if not todo:
        return None
    plan.data.make()
    stop = Stop()
    with stop.watch():
        tasks = []
        for run in todo:
            (run.folder / FAILURE_FILE).unlink(missing_ok=True)
            scores = [
                word for item in plan.data.sets for word in ("--score", item.key, str(item.clean), str(item.noisy))
            ]
            command = python_command(
                "saf_jax.sweep_child", "--config", run.base, "--workdir", str(run.folder), *scores, "--set",
                *as_overrides(run.settings),
            )  # fmt: skip
            tasks.append(Task(run.name, command, run.folder / OUTPUT_FILE))
        with SweepProgress(todo, done_before=len(plan.runs) - len(todo), total=len(plan.runs)) as progress:

            def ended(number: int, status: int, last_line: str) -> None:
                run = todo[number]
                state = state_of(run, plan.data.sets)
                reason = None
                if not state.done and not stop.count and status != _STOPPED:
                    reason = state.unscored or describe_status(status, last_line)
                    write_json(run.folder / FAILURE_FILE, {"reason": reason, "status": status})
                progress.ended(run, state.done, reason)

            run_tasks(tasks, slots(jobs), stop, ended=ended, show=progress.show)
    return stop.signal if stop.count else None


def _report(plan: _Plan, args: argparse.Namespace) -> dict[str, Any]:
    """Writes and prints the table of what is there."""
    from saf_jax.files import write_text
    from saf_jax.sweep_markdown import format_markdown
    from saf_jax.sweep_page import write_page
    from saf_jax.sweep_results import make_table, write_table

    words = ["saf-jax", "sweep", args.spec, "--workdir", args.workdir, "--budget", args.budget]
    words += ["--seeds", args.seeds] if args.seeds else []
    words += ["--audio", args.audio] if args.audio else []
    for test in args.test:
        words += ["--test", *test]
    words += ["--set", *args.set] if args.set else []
    facts = {"spec": plan.name, "budget": args.budget, "base": plan.spec.base, "command": shlex.join(words)}
    table = make_table(plan.spec, plan.runs, plan.data.sets, facts, plan.workdir)
    folder = plan.workdir / plan.name
    print(write_table(table, folder))
    write_text(folder / "table.md", format_markdown(table))
    print(f"{write_page(table, plan.workdir, folder)}")
    return table


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text}: write it as I/N with I from 1 to N, such as 1/2")
    return int(index), int(count)


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        seeds = tuple(int(item) for item in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds {text}: write whole numbers with commas between them, such as 0,1,2") from error
    if min(seeds) < 0:
        raise UserError(f"--seeds {text}: must not be negative")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: names a seed twice")
    return seeds
