"""Devices and processes. No other file names pmap, collectives, devices or processes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from saf_jax.errors import UserError

DEVICES = "devices"
"""Name of the mapped axis: one slice of the batch for each device of all processes."""


def process_index() -> int:
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def is_main_process() -> bool:
    """True in the one process that writes logs."""
    return jax.process_index() == 0


def describe_devices() -> str:
    """Such as "8 x NVIDIA H200" or "1 x cpu"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def check_batch_size(batch_size: int) -> None:
    """Raises `UserError` if the devices cannot share a batch evenly; names the nearest sizes that they can."""
    devices = jax.device_count()
    if batch_size % devices:
        lower = batch_size // devices * devices
        nearest = f"{lower} or {lower + devices}" if lower else str(devices)
        raise UserError(f"train.batch_size={batch_size}: the {devices} devices cannot share it evenly: use {nearest}")


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


def put_batch(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's part of a batch [B_local, ...] on its devices, as the mapped step takes it; returns at once."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (DEVICES,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DEVICES))
    return jax.device_put(split_batch(batch), sharding)


def split_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This process's part of a batch [B_local, ...] -> [local devices, B_local / local devices, ...]."""
    devices = jax.local_device_count()
    return {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}


def sum_over_devices(tree: Any) -> Any:
    """Sums every array over all devices; only inside `map_over_devices`."""
    return jax.lax.psum(tree, DEVICES)
