"""Checkpoints of training runs. No other file names orbax."""

import json
import logging
import os
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
        for step in reversed(self.steps()):
            try:
                state, meta = self._restore(step, target)
                return step, state, meta
            except Exception as error:  # orbax raises many kinds for damaged files; each means: try an older one
                logging.getLogger("saf_jax").warning("checkpoint %d is damaged, passed over: %s", step, _brief(error))
        return None

    def restore_best(self, target: TrainState) -> TrainState:
        """The state with the lowest validation loss; the newest where none was validated."""
        best = self._manager.best_step()
        for step in ([] if best is None else [best]) + list(reversed(self.steps())):
            try:
                return self._restore(step, target)[0]
            except Exception as error:
                logging.getLogger("saf_jax").warning("checkpoint %d is damaged, passed over: %s", step, _brief(error))
        raise UserError(f"{self._manager.directory}: holds no sound checkpoint: train first")

    def _restore(self, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        args = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(target), meta=self._ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored["state"], restored["meta"]

    def close(self) -> None:
        """Waits until everything is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _brief(error: Exception) -> str:
    """One line of at most 200 characters: orbax's messages carry whole specifications of arrays."""
    return " ".join(str(error).split())[:200]


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
