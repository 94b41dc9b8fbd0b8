"""Growing a trained network: more channels and more layers, with the same output to begin with.

A large network that starts from what a small one has learnt skips the longest part of its training.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from saf_jax.config import ModelConfig
from saf_jax.model.net import SAFNet


def can_grow(given: ModelConfig, wanted: ModelConfig) -> bool:
    """Whether `grow` makes a network of `wanted` from one of `given`."""
    return (
        dataclasses.replace(given, width=wanted.width, layers=wanted.layers) == wanted
        and wanted.width % given.width == 0
        and wanted.layers >= given.layers
        and wanted.layer_kind == "saf"
    )


def grow(variables: Any, given: ModelConfig, wanted: ModelConfig, bands: int, seed: int = 0) -> Any:
    """Variables of a wider and deeper network that computes what the given one does.

    Each channel becomes `wanted.width / given.width` equal ones. What reads them gets the old weight in unequal parts,
    so that their gradients differ and they part ways. Layers are added after the last one; each starts as the identity.

    Args:
      variables: of `SAFNet(given)`.
      given, wanted: settings that `can_grow` accepts.
      bands: F of the spectra.
      seed: of the unequal parts, and of the weights within the new layers.

    Returns:
      Variables of `SAFNet(wanted)`.

    Raises:
      ValueError: `can_grow` says no.

    References:
      Net2Net, arXiv 1511.05641 (Net2WiderNet, Net2DeeperNet).
    """
    if not can_grow(given, wanted):
        raise ValueError("the networks differ in more than width (a multiple) and layers (no fewer)")
    spectrum = jax.ShapeDtypeStruct((1, 1, bands), np.complex64)
    fresh = jax.jit(lambda key: SAFNet(wanted).lazy_init(key, spectrum))(jax.random.key(seed))
    old = traverse_util.flatten_dict(variables)
    new_layers = {f"layer_{i}" for i in range(given.layers, wanted.layers)}
    rng = np.random.default_rng(seed)
    grown = {}
    for path, leaf in sorted(traverse_util.flatten_dict(fresh).items()):
        if path[1] not in new_layers:
            grown[path] = _widened(path, np.asarray(old[path]), leaf.shape, wanted.width // given.width, rng)
        else:
            grown[path] = _idle(path, np.asarray(leaf))
    return traverse_util.unflatten_dict(grown)


def with_layers_of(variables: Any, deeper: Any) -> Any:
    """The same function as a deeper network: the layers that are missing are the deeper one's, without what they add.

    Args:
      variables: of a network.
      deeper: variables of one that differs from it in `layers` alone, such as one that was grown from it and trained.

    Returns:
      Variables of the deeper network.
    """
    own = traverse_util.flatten_dict(variables)
    theirs = traverse_util.flatten_dict(deeper)
    return traverse_util.unflatten_dict(
        {path: own[path] if path in own else _idle(path, np.asarray(leaf)) for path, leaf in theirs.items()}
    )


def _idle(path: tuple[str, ...], leaf: np.ndarray) -> np.ndarray:
    """A leaf of a layer that is to be the identity."""
    # The last map of each residual branch: at 0 the branch adds nothing, and its gradient is not 0.
    return np.zeros_like(leaf) if path[-2].startswith("out") else leaf


def _widened(
    path: tuple[str, ...], leaf: np.ndarray, shape: tuple[int, ...], times: int, rng: np.random.Generator
) -> np.ndarray:
    """The leaf with each channel repeated along all axes that are longer in `shape`."""
    reads_channels = path[-1] == "kernel" and leaf.ndim == 2 and shape[0] != leaf.shape[0]
    for axis, size in enumerate(shape):
        if size != leaf.shape[axis]:
            leaf = np.repeat(leaf, times, axis)
    if reads_channels:
        parts = rng.normal(size=(shape[0] // times, times, shape[1])).astype(leaf.dtype)
        parts -= parts.mean(1, keepdims=True)
        size = np.sqrt(np.mean(leaf**2, 0))
        leaf = (leaf + parts.reshape(shape) * size) / times
    if path[-2] == "query":
        # The scores of attention are sums over channels, divided by the root of their number.
        leaf = leaf / leaf.dtype.type(times) ** 0.5
    return leaf
