"""The command `saf-jax train-cost`: what a training takes on this machine, from a few measured steps."""

import argparse
import dataclasses
import json
import math
import statistics
import time
from typing import Any

from saf_jax.config import Config, TrainConfig, add_set_argument
from saf_jax.errors import UserError
from saf_jax.huge_pages import restart_with_huge_pages

_WARM_UP_STEPS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a config file, or the name of one that comes with the package")
    add_set_argument(parser)
    parser.add_argument(
        "--devices", type=int, metavar="N", help="plan for N devices like the one here (default: these)"
    )
    parser.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help="examples an epoch, where the config names no data: 10802 for VB-DEMAND",
    )
    parser.add_argument("--measured-steps", type=int, default=5, metavar="N", help="how many steps are timed")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    restart_with_huge_pages()
    from saf_jax.config import load_config
    from saf_jax.jit_cache import use_compilation_cache

    for name in ("devices", "examples", "measured_steps"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    use_compilation_cache()
    config = load_config(args.config, args.set)
    cost = train_cost(config, devices=args.devices, examples=args.examples, measured_steps=args.measured_steps)
    print(json.dumps(cost, indent=2) if args.json else _text(cost))
    return 0


def train_cost(
    config: Config, *, devices: int | None = None, examples: int | None = None, measured_steps: int = 5
) -> dict[str, Any]:
    """Measures a few real steps on synthetic batches, and plans the config's training by them.

    The devices' share of the work alone is measured: no data pipeline, no validation, no communication with devices
    that are not here.

    Args:
      config: all settings.
      devices: number of devices to plan for, each taken to be like the ones here; None: those that are here.
      examples: examples an epoch, for a config that names no training data.
      measured_steps: steps that are timed.

    Returns:
      By name: "parameters", "gmac_per_second"; "device" and "devices"; "batch_size", "batch_per_device",
      "audio_seconds_per_step"; "compile_seconds", "seconds_per_step" (median), "audio_seconds_per_second";
      "memory_gb" (a device's, of the compiled step), "memory_limit_gb" and "largest_batch" (over all devices, by
      proportion), both None where the limit is unknown; and, each None where the number of examples is not known,
      "steps_per_epoch", "steps", "epochs", "hours_per_epoch", "hours", "audio_hours".

    Raises:
      UserError: the devices cannot share the batch evenly, or the data that the config names cannot be used.
    """
    from saf_jax import info, parallel
    from saf_jax.model.cost import count_macs_per_second

    train = config.train
    planned = devices or parallel.device_count()
    parallel.check_batch_size(train.batch_size, train.accumulate, planned)
    share = train.batch_size // planned
    here = parallel.device_count()
    local = dataclasses.replace(config, train=dataclasses.replace(train, batch_size=share * here))
    step = BareStep(local)
    seconds = step.time(measured_steps)
    memory, limit = step.memory_gb(), parallel.memory_limit_gb()
    audio_seconds = train.batch_size * config.data.crop_seconds
    steps_per_epoch = _steps_per_epoch(config, examples)
    steps = _planned_steps(train, steps_per_epoch, seconds)

    def hours(count: int | None) -> float | None:
        return None if count is None else count * seconds / 3600

    return {
        "parameters": info.count_parameters({"params": step.state.params}),
        "gmac_per_second": round(count_macs_per_second(config) / 1e9, 4),
        "device": parallel.device_kind(),
        "devices": planned,
        "batch_size": train.batch_size,
        "batch_per_device": share,
        "audio_seconds_per_step": audio_seconds,
        "compile_seconds": step.compile_seconds,
        "seconds_per_step": seconds,
        "audio_seconds_per_second": audio_seconds / seconds,
        "memory_gb": memory["total"],
        "memory_limit_gb": limit,
        "largest_batch": limit and _largest_batch(memory, limit, share, planned, train.accumulate),
        "steps_per_epoch": steps_per_epoch,
        "steps": steps,
        "epochs": steps and steps_per_epoch and steps / steps_per_epoch,
        "hours_per_epoch": hours(steps_per_epoch),
        "hours": hours(steps),
        "audio_hours": steps and steps * audio_seconds / 3600,
    }


def _planned_steps(train: TrainConfig, steps_per_epoch: int | None, seconds_per_step: float) -> int | None:
    steps = train.steps or (steps_per_epoch and train.epochs * steps_per_epoch)
    by_the_clock = math.ceil(60 * train.minutes / seconds_per_step)
    return min(steps, by_the_clock) if steps and train.minutes else steps


class BareStep:
    """The compiled training step with a state and a synthetic batch on the devices; nothing around it.

    Args:
      config: all settings; the batch is shared by the devices that are here.

    Attributes:
      compiled: the program; `compiled(state, batch)`.
      state: on the devices; replaced by each step, whose input is donated.
      batch: on the devices.
      compile_seconds: time that tracing and compilation took.
    """

    def __init__(self, config: Config):
        import jax

        from saf_jax import parallel
        from saf_jax.training_step import build_train_step, init_state

        self.state = parallel.put_state(jax.jit(lambda: init_state(config))())
        self.batch = parallel.put_batch(synthetic_batch(config))
        start = time.perf_counter()
        mapped = parallel.map_over_devices(build_train_step(config), donate_state=True)
        self.compiled = mapped.lower(self.state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - start

    def run(self) -> None:
        """One step, to its end."""
        import jax

        self.state, result = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, result))

    def time(self, steps: int) -> float:
        """Median seconds of a step, after a few that are not counted."""
        for _ in range(_WARM_UP_STEPS):
            self.run()
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self.run()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def memory_gb(self) -> dict[str, float]:
        """Memory of the program on one device: "state", "batch", "work" (results on the way) and their "total"."""
        import jax

        from saf_jax import parallel

        def size(tree: Any) -> float:
            return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e9

        parts = {
            "state": size(self.state),
            "batch": size(self.batch) / parallel.local_device_count(),
            "work": self.compiled.memory_analysis().temp_size_in_bytes / 1e9,
        }
        return {**parts, "total": sum(parts.values())}


def synthetic_batch(config: Config) -> dict[str, Any]:
    """Noise in the shapes of this process's part of a batch, every example as long as the crop."""
    import numpy as np

    from saf_jax import parallel
    from saf_jax.metric_labels import placeholder_arrays

    rng = np.random.default_rng(0)
    count = config.train.batch_size // parallel.process_count()
    length = max(1, round(config.data.crop_seconds * config.stft.sample_rate_hz))
    clean = 0.1 * rng.standard_normal((count, length), np.float32)
    noisy = clean + 0.05 * rng.standard_normal((count, length), np.float32)
    return {
        "noisy": noisy,
        "clean": clean,
        "samples": np.full(count, length, np.int32),
        **placeholder_arrays(config, count),
    }


def _steps_per_epoch(config: Config, examples: int | None) -> int | None:
    if examples is None:
        if not config.data.train_clean:
            return None
        from saf_jax.data.pipeline import examples_per_epoch

        examples = examples_per_epoch(config)
    return max(1, math.ceil(examples / config.train.batch_size))


def _largest_batch(memory: dict[str, float], limit_gb: float, share: int, devices: int, accumulate: int) -> int:
    """What fits all devices together, taking the memory beside the state as proportional to the batch.

    With accumulation it is a part of a share that is at work at a time: the same number of parts is assumed.
    """
    per_example = (memory["batch"] + memory["work"]) / share
    # A tenth is left for what the allocator and the program itself need.
    fits = int((0.9 * limit_gb - memory["state"]) / per_example) // accumulate * accumulate
    return max(0, fits) * devices


def _text(cost: dict[str, Any]) -> str:
    devices = f"{cost['devices']} x {cost['device']}"
    lines = {
        "network": f"{cost['parameters']:,} parameters, {cost['gmac_per_second']:.3f} GMAC per second of audio",
        "devices": f"{devices}, {cost['batch_per_device']} examples of {cost['batch_size']} on each",
        "one step": f"{cost['seconds_per_step']:.3f} s for {cost['audio_seconds_per_step']:g} s of audio: "
        f"{cost['audio_seconds_per_second']:.1f} seconds of audio per second",
        "compilation": f"{cost['compile_seconds']:.0f} s, once",
        "memory": f"{cost['memory_gb']:.2f} GB a device",
        "the training": "unknown: name the data (--set data.train_clean=DIR ...), or give --examples N",
        "not included": "validation, and data that come slower than the steps (data.workers)",
    }
    if cost["memory_limit_gb"] is not None:
        lines["memory"] += f" of {cost['memory_limit_gb']:.1f}; a batch of about {cost['largest_batch']:,} would fit"
    if cost["steps"] is not None:
        epochs = "" if cost["epochs"] is None else f" ({cost['epochs']:.1f} epochs)"
        lines["the training"] = (
            f"{cost['steps']:,} steps{epochs}, {cost['audio_hours']:.1f} hours of audio: {_duration(cost['hours'])}, "
            f"{cost['hours'] * cost['devices']:.1f} device hours"
        )
    if cost["steps_per_epoch"] is not None:
        lines["one epoch"] = f"{cost['steps_per_epoch']:,} steps, {_duration(cost['hours_per_epoch'])}"
    return "\n".join(f"{name:<14}{text}" for name, text in lines.items())


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.1f} seconds"
    return f"{60 * hours:.1f} minutes" if hours < 1 else f"{hours:.1f} hours"
