"""Devices and processes: pmap, collectives, what is on which device, what which process does."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from saf_jax.errors import UserError

DEVICES = "devices"
"""Name of the mapped axis: one slice of the batch for each device of all processes."""


def join_processes(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Makes this process one of several that train together; to be called before anything touches a device.

    Args:
      coordinator: "address:port" of the first process; None finds all three in the cluster's environment (Slurm, Open
        MPI, Kubernetes, Cloud TPU).
      count: number of processes.
      index: number of this one, from 0.

    Raises:
      UserError: there is no such environment, or the others do not come.
    """
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        mend = "check that all processes run and reach the address" if coordinator else (
            "start them under Slurm, Open MPI, Kubernetes or on Cloud TPU, or give --coordinator ADDRESS:PORT "
            "--process-count N --process-index I"
        )  # fmt: skip
        raise UserError(f"the processes could not be joined ({reason}): {mend}") from error


def process_index() -> int:
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def is_main_process() -> bool:
    """True in the one process that writes logs."""
    return jax.process_index() == 0


def device_count() -> int:
    """Devices of all processes."""
    return jax.device_count()


def device_kind() -> str:
    """Such as "NVIDIA H200" or "cpu"."""
    return jax.devices()[0].device_kind


def describe_devices() -> str:
    """Such as "8 x NVIDIA H200" or "1 x cpu"."""
    return f"{device_count()} x {device_kind()}"


def check_batch_size(batch_size: int, accumulate: int = 1, devices: int | None = None) -> None:
    """Raises `UserError` if the devices cannot share a batch evenly; names the nearest sizes that they can.

    Args:
      batch_size: examples over all devices of all processes.
      accumulate: parts that each device takes its share in.
      devices: number of devices; None: those that are there.
    """
    devices = devices or jax.device_count()
    unit = devices * accumulate
    if batch_size % unit:
        lower = batch_size // unit * unit
        nearest = f"{lower} or {lower + unit}" if lower else str(unit)
        sharers = f"{devices} device" + ("s" if devices > 1 else "")
        if jax.process_count() > 1:
            sharers += f" of {jax.process_count()} processes"
        parts = f" in {accumulate} parts each (train.accumulate)" if accumulate > 1 else ""
        raise UserError(f"train.batch_size={batch_size}: the {sharers} cannot share it evenly{parts}: use {nearest}")


def map_over_devices(step: Callable, *, donate_state: bool = False) -> Callable:
    """Compiles `step(state, batch) -> (state, result)` for all devices.

    Inside, `step` sees the whole state and its device's slice of the batch, and `psum` sums over `DEVICES`. The state
    is held once a device, unstacked, the same on all; so are the results.

    Args:
      step: a pure function whose outputs do not differ between devices.
      donate_state: the state's buffers are reused for the new one.
    """
    return jax.pmap(
        step,
        axis_name=DEVICES,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=(0,) if donate_state else (),
    )


def put_state(state: Any) -> Any:
    """Puts a state on all devices of this process, as the mapped step takes it and gives it back."""
    return jax.device_put(state, _local_sharding())


def put_batch(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's part of a batch [B_local, ...] on its devices, as the mapped step takes it; does not wait."""
    return jax.device_put(split_batch(batch), _local_sharding(DEVICES))


def _local_sharding(*axes: str) -> jax.sharding.Sharding:
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (DEVICES,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def put_scalar(value: float) -> jax.Array:
    """A float32 [1] for each device of this process, as the mapped step takes it in a batch."""
    values = np.full((jax.local_device_count(), 1), value, np.float32)
    return jax.device_put(values, _local_sharding(DEVICES))


def on_host(function: Callable[[], Any]) -> Any:
    """The result of a jitted `function()`, computed on the CPU where JAX has one.

    What runs once is not worth a GPU's compiler: initial weights took it some 40 s (an H200's, beside three other
    programs), the CPU's a few.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.jit(function)()
    with jax.default_device(host):
        return jax.jit(function)()


def split_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This process's part of a batch [B_local, ...] -> [local devices, B_local / local devices, ...]."""
    devices = jax.local_device_count()
    return {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}


def spread_rows(function: Callable) -> Callable:
    """Compiles `function(shared, rows) -> rows` for this process's devices.

    Args:
      function: pure, each row of its result depending on that row alone.

    Returns:
      The same function; arrays of `rows` [B, ...] are split over the devices, which share B evenly. `shared` is best
      given as `replicate` makes it.
    """
    mesh = jax.sharding.Mesh(jax.local_devices(), DEVICES)
    one, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(DEVICES)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(one, split), out_specs=split, check_vma=False))


def replicate(tree: Any) -> Any:
    """The arrays of a tree, whole on each of this process's devices."""
    mesh = jax.sharding.Mesh(jax.local_devices(), DEVICES)
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def local_device_count() -> int:
    return jax.local_device_count()


def runs_on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def sum_over_devices(tree: Any) -> Any:
    """Sums every array over all devices; only inside `map_over_devices`."""
    if jax.process_count() > 1 and runs_on_cpu():
        # Between CPUs each array travels by itself, and every one of some hundred is waited for.
        flat, restore = ravel_pytree(tree)
        return restore(jax.lax.psum(flat, DEVICES))
    return jax.lax.psum(tree, DEVICES)


def gather_over_devices(tree: Any) -> Any:
    """Arrays [B, ...] of every device's slice -> those of the whole batch; only inside `map_over_devices`."""
    return jax.lax.all_gather(tree, DEVICES, tiled=True)


def device_index() -> jax.Array:
    """Which slice of the batch is this device's; only inside `map_over_devices`."""
    return jax.lax.axis_index(DEVICES)


def to_checkpoint(state: Any) -> Any:
    """A state on this process's devices as one that orbax writes once, whatever the devices and processes; no copy."""
    if jax.process_count() == 1:
        # One device's copy: of the same on eight devices orbax would cut every array into eight parts to write.
        return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, state)
    from jax.experimental import multihost_utils

    mesh = jax.sharding.Mesh(np.array(jax.devices()), (DEVICES,))
    return multihost_utils.host_local_array_to_global_array(state, mesh, jax.sharding.PartitionSpec())


def from_main_process(tree: Any) -> Any:
    """The main process's arrays or numbers, in every process: numpy arrays of the same shapes everywhere."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def from_all_processes(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, of one shape: [...] -> [processes, ...]; all must ask together."""
    if jax.process_count() == 1:
        return array[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array)


def everywhere(condition: bool) -> bool:
    """True if it is so in every process; all must ask together."""
    if jax.process_count() == 1:
        return condition
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[int], bool]]:
    """While the block runs, SIGTERM (preemption) does not end the process.

    Yields:
      A function of the steps done, which every process asks once a step; it turns true after a SIGTERM, in all
      processes at the same step even if only one of them got it.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        # jax.distributed has taken charge of the signal; asking costs no communication between devices.
        yield multihost_utils.reached_preemption_sync_point
        return
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: stop.is_set()
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield lambda _: stop.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)


def device_memory_gb() -> float | None:
    """Largest memory that the arrays of one of this process's devices have taken; None where none tells, as on CPUs."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((peak / 1e9 for peak in peaks if peak is not None), default=None)


def memory_limit_gb() -> float | None:
    """Memory that arrays of one device may take; that of the whole machine for CPUs, None where nothing tells."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None and jax.default_backend() == "cpu" and hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
    return None if limit is None else limit / 1e9
