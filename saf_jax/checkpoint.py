"""Checkpoints of training runs. No other file names orbax."""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from saf_jax import parallel
from saf_jax.config import Config, config_from_dict
from saf_jax.errors import UserError
from saf_jax.files import make_folder, user_errors, write_text
from saf_jax.run_log import RATINGS_FILE
from saf_jax.training_step import TrainState, init_state

CONFIG_FILE = "config.json"
_FOLDER, _DAMAGED = "checkpoints", "damaged"


class Checkpoints:
    """The checkpoints of one run: the latest, and the `keep_best` that were rated highest.

    Saving goes on in the background; a checkpoint that was cut off by a crash is never listed. Each holds the state
    and, as JSON, whatever else a resumed run needs. Ratings may come long after the checkpoint: they have a file of
    their own, and a candidate is kept until it is rated.

    Args:
      workdir: folder of the run.
      keep_best: number of best checkpoints to keep besides the latest.
    """

    def __init__(self, workdir: str | os.PathLike, keep_best: int):
        import orbax.checkpoint as ocp

        # orbax reports every save at INFO, each cleaned-up leftover at WARNING, and a failed write, which it raises
        # too, several times at ERROR with tracebacks.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp, self._keep_best = ocp, keep_best
        self._workdir = Path(workdir).absolute()
        self._folder = self._workdir / _FOLDER
        self._ratings = _read_ratings(self._workdir / RATINGS_FILE)
        # Opened by the first save: one who only reads must not touch the folder of a running training.
        self._manager = None

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were written to the end, in order; waits for one under way."""
        self.wait()
        return sorted(self._ocp.utils.checkpoint_steps(self._folder)) if self._folder.is_dir() else []

    def best_steps(self) -> list[int]:
        """Steps of rated checkpoints, the highest rating first, the earlier of equal ones first."""
        rated = [step for step in self.steps() if self._ratings.get(step) is not None]
        return sorted(rated, key=lambda step: -self._ratings[step])

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For orbax: which of the checkpoints, the oldest first, are not to be deleted now."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        rated = [step for step in steps if self._ratings.get(step) is not None]
        best = sorted(rated, key=lambda step: -self._ratings[step])[: self._keep_best]
        candidates = [step for step in steps if step in self._ratings and self._ratings[step] is None]
        return [step in best or step in candidates or step == steps[-1] for step in steps]

    def save(self, step: int, state: TrainState, meta: dict[str, Any], *, candidate: bool = False) -> None:
        """Starts saving; the state may be changed or donated as soon as this returns.

        Args:
          step: steps done.
          state: on the devices.
          meta: whatever else a resumed run needs, JSON-able.
          candidate: a rating of it is known or will be.
        """
        if self._manager is None:
            options = self._ocp.CheckpointManagerOptions(
                preservation_policy=self, cleanup_tmp_directories=True, enable_async_checkpointing=True
            )
            self._manager = self._ocp.CheckpointManager(self._folder, options=options)
        if candidate and step not in self._ratings:
            self._ratings[step] = None
            self._write_ratings()
        state = self._ocp.args.StandardSave(parallel.to_checkpoint(state))
        args = self._ocp.args.Composite(state=state, meta=self._ocp.args.JsonSave(meta))
        with self._told():
            self._manager.save(step, args=args, force=True)

    def rate(self, step: int, rating: float) -> None:
        """Says how good the checkpoint of a step is, the higher the better; before or after it is saved."""
        self._ratings[step] = rating
        self._write_ratings()

    def _write_ratings(self) -> None:
        if parallel.is_main_process():
            write_text(self._workdir / RATINGS_FILE, json.dumps(self._ratings) + "\n")

    def restore_newest(self, target: TrainState) -> tuple[int, TrainState, dict[str, Any]] | None:
        """The newest sound checkpoint, or None if there is none at all; damaged ones are put aside.

        Args:
          target: a state of the right structure, or its shapes.

        Raises:
          UserError: there are checkpoints, but none is sound.
        """
        steps = self.steps()
        for restored in self._sound(reversed(steps), target):
            self._put_aside([step for step in steps if step > restored[0]])
            return restored
        if steps:
            raise UserError(
                f"{self._folder}: none of its checkpoints can be read by this version: see the reasons above; to start "
                "anew, take another --workdir"
            )
        return None

    def restore_best(self, target: dict[str, Any]) -> dict[str, Any]:
        """Parts of the state that was rated highest; of the newest where none was rated.

        Args:
          target: the wanted fields of `TrainState` with the shapes of their arrays; what else a checkpoint holds does
            not matter.
        """
        best = self.best_steps()
        others = [step for step in reversed(self.steps()) if step not in best]
        for _, state, _ in self._sound([*best, *others], target):
            return state
        raise UserError(f"{self._folder}: holds no sound checkpoint: train first")

    def restore_step(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        """Parts of the state after that many steps, whatever its rating; `target` as of `restore_best`.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        with _patient_loops():
            try:
                return self._restore(step, target)[0]
            except Exception as error:  # as in `_sound`
                raise UserError(
                    f"{self._folder / str(step)}: is no sound checkpoint ({_in_one_line(error)}): name another one, or "
                    f"{self._workdir} for the best"
                ) from error

    def _sound(self, steps: Iterable[int], target: Any) -> Iterator[tuple[int, Any, dict[str, Any]]]:
        """Restores one step after another; of those that cannot be it tells in one line each."""
        for step in steps:
            restored, reason = None, "another process could not read it"
            with _patient_loops():
                try:
                    restored = self._restore(step, target)
                except Exception as error:  # orbax raises many kinds for damaged files; each means: try another one
                    reason = _in_one_line(error)
            if parallel.everywhere(restored is not None):
                yield step, *restored
            else:
                logging.getLogger("saf_jax").warning("checkpoint %d is damaged, passed over: %s", step, reason)

    def _restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        """Reads on this process alone, onto one device: a damaged file must not leave the others waiting."""
        ocp = self._ocp
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), target)
        if isinstance(target, TrainState):
            handler, state = ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(target)
        else:
            handler = ocp.PyTreeCheckpointHandler()
            places = ocp.checkpoint_utils.construct_restore_args(target)
            state = ocp.args.PyTreeRestore(target, restore_args=places, partial_restore=True)
        alone = parallel.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=alone, active_processes={alone}, barrier_sync_key_prefix=f"reader_{alone}"
        )
        handler = ocp.CompositeCheckpointHandler(state=handler, meta=ocp.JsonCheckpointHandler())
        with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
            args = ocp.args.Composite(state=state, meta=ocp.args.JsonRestore())
            restored = reader.restore(self._folder / str(step), args=args)
        return restored["state"], restored["meta"]

    def _put_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints away: the run comes by their steps again."""
        if steps and parallel.is_main_process():
            with user_errors(self._workdir, "put damaged checkpoints aside in"):
                for step in steps:
                    aside = make_folder(self._workdir / _DAMAGED) / f"{step}-{time.time_ns()}"
                    (self._folder / str(step)).rename(aside)
        parallel.everywhere(True)

    def wait(self) -> None:
        """Waits until everything is on the disk.

        Raises:
          UserError: it could not be written.
        """
        if self._manager is not None:
            with self._told():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on the disk, and ends what works in the background."""
        if self._manager is not None:
            manager, self._manager = self._manager, None
            with self._told():
                try:
                    manager.wait_until_finished()
                finally:
                    manager.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what a failed write raises, then or at the next call, into a `UserError`."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # tensorstore raises a ValueError for a full disk
            text = " ".join(str(error).split())
            full = "No space left" in text or "quota" in text
            reason = "no space left on the device: free some space" if full else f"{text[:300]}: mend it"
            raise UserError(
                f"{self._folder}: a checkpoint could not be saved: {reason}, then run the same command again; it goes "
                "on from the newest sound one"
            ) from error


def holds_checkpoints(workdir: Path) -> bool:
    """Whether a folder has checkpoints, sound or not."""
    folders = (workdir / _FOLDER, workdir / _DAMAGED)
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _read_ratings(path: Path) -> dict[int, float | None]:
    try:
        return {int(step): rating for step, rating in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        # No file yet, or a damaged one: the next validations fill it again.
        return {}


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


def load_run(folder: str | os.PathLike) -> tuple[Config, Any]:
    """Config and variables of a run's best checkpoint, or of the one whose folder is named.

    Args:
      folder: a run's folder, or one of those in its `checkpoints`, such as `runs/mine/checkpoints/2000`.

    Raises:
      UserError: the folder is neither, or the checkpoint is damaged.
    """
    path = Path(folder).absolute()
    workdir, step = folder, None
    if path.parent.name == _FOLDER and path.name.isdecimal() and (path.parent.parent / CONFIG_FILE).is_file():
        workdir, step = path.parent.parent, int(path.name)
    config = read_run_config(workdir)
    if not (Path(workdir) / _FOLDER).is_dir():
        raise UserError(f"{workdir}: holds no checkpoint yet: let the training run on")
    checkpoints = Checkpoints(workdir, config.train.keep_best)
    state = jax.eval_shape(lambda: init_state(config))
    # Not the rest: weights stay readable where what surrounds them in training has changed.
    fields = {"params": state.params, "average": state.average, "batch_stats": state.batch_stats}
    target = {name: field for name, field in fields.items() if field}
    parts = checkpoints.restore_best(target) if step is None else checkpoints.restore_step(step, target)
    return config, state.replace(**parts).best_variables
