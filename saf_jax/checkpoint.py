"""Checkpoints of training runs. No other file names orbax."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from saf_jax.config import Config, config_from_dict
from saf_jax.errors import UserError
from saf_jax.training_step import TrainState, init_state

CONFIG_FILE = "config.json"
_FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run: the latest, and the `keep_best` with the lowest validation loss.

    Saving goes on in the background; a checkpoint that was cut off by a crash is never listed. Each holds the state
    and, as JSON, whatever else a resumed run needs.

    Args:
      workdir: folder of the run.
      keep_best: number of best checkpoints to keep besides the latest.
    """

    def __init__(self, workdir: str | os.PathLike, keep_best: int):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        # orbax reports every save at INFO and each cleaned-up leftover at WARNING.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp

        def valid_loss(metrics: dict[str, float]) -> float:
            return metrics["valid_loss"]

        best = policy.BestN(
            get_metric_fn=valid_loss,
            reverse=True,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            # A plain max_to_keep with best_fn would delete the latest step when it is not among the best.
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(1), best]),
            # Without a best_fn the metrics are not written, and a reopened run would not know its best.
            best_fn=valid_loss,
            best_mode="min",
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(Path(workdir).absolute() / _FOLDER, options=options)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, meta: dict[str, Any], valid_loss: float | None = None) -> None:
        """Starts saving; the state may be changed or donated as soon as this returns."""
        if step in self._manager.all_steps():
            # Left by a run that was resumed from before it, since it is damaged; orbax would refuse to replace it.
            self._manager.delete(step)
        args = self._ocp.args.Composite(state=self._ocp.args.StandardSave(state), meta=self._ocp.args.JsonSave(meta))
        metrics = None if valid_loss is None else {"valid_loss": valid_loss}
        self._manager.save(step, args=args, metrics=metrics, force=True)

    def restore_newest(self, target: TrainState) -> tuple[int, TrainState, dict[str, Any]] | None:
        """The newest sound checkpoint, or None if there is none; damaged ones are passed over.

        Args:
          target: a state of the right structure, or its shapes with shardings.
        """
        return next(self._sound(reversed(self.steps()), target), None)

    def restore_best(self, target: TrainState) -> TrainState:
        """The state with the lowest validation loss; the newest where none was validated."""
        best = self._manager.best_step()
        others = [step for step in reversed(self.steps()) if step != best]
        for _, state, _ in self._sound(others if best is None else [best, *others], target):
            return state
        raise UserError(f"{self._manager.directory}: holds no sound checkpoint: train first")

    def _sound(self, steps: Iterable[int], target: TrainState) -> Iterator[tuple[int, TrainState, dict[str, Any]]]:
        """Restores one step after another; of those that cannot be it tells in one line each."""
        for step in steps:
            restored, reason = None, ""
            with _patient_loops():
                try:
                    restored = self._restore(step, target)
                except Exception as error:  # orbax raises many kinds for damaged files; each means: try another one
                    reason = " ".join(str(error).split())[:200]
            if restored is None:
                logging.getLogger("saf_jax").warning("checkpoint %d is damaged, passed over: %s", step, reason)
            else:
                yield step, *restored

    def _restore(self, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        args = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(target), meta=self._ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored["state"], restored["meta"]

    def close(self) -> None:
        """Waits until everything is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that lets what still runs in it come to its end before it closes."""

    def close(self) -> None:
        while not self.is_closed() and (left := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        super().close()


@contextlib.contextmanager
def _patient_loops() -> Iterator[None]:
    """Inside, new event loops are patient ones.

    When a read fails, orbax closes its loop under the other reads: they would fail in turn, at some later time, with
    tracebacks on stderr and errors in the midst of whatever runs then.
    """
    ordinary = asyncio.new_event_loop
    asyncio.new_event_loop = _PatientLoop
    try:
        yield
    finally:
        asyncio.new_event_loop = ordinary


def read_run_config(workdir: str | os.PathLike) -> Config:
    """The config that a run was started with.

    Raises:
      UserError: the folder is not one of a training run.
    """
    path = Path(workdir) / CONFIG_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir}: is not the folder of a training run (it holds no {CONFIG_FILE})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error}): start the run in a new folder") from error
    return config_from_dict(tree, where=str(path))


def load_best(workdir: str | os.PathLike) -> tuple[Config, Any]:
    """Config and variables of a run's best checkpoint."""
    config = read_run_config(workdir)
    if not (Path(workdir) / _FOLDER).is_dir():
        raise UserError(f"{workdir}: holds no checkpoint yet: let the training run on")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: init_state(config)),
    )
    checkpoints = Checkpoints(workdir, config.train.keep_best)
    try:
        return config, checkpoints.restore_best(target).variables
    finally:
        checkpoints.close()
