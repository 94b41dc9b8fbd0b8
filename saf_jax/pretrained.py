"""Weights by name or path."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saf_jax.config import Config
from saf_jax.errors import UserError

DEFAULT = "saf-tiny"
"""The shipped weights that are taken where none are named."""

DEFAULT_CAUSAL = "saf-tiny-causal"
"""Those that are taken for live signals where none are named."""


def shipped_weights() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in shipped_path("").parent.glob("*.safetensors"))


def shipped_path(name: str) -> Path:
    """Where shipped weights of that name lie; their model card lies beside them."""
    return Path(__file__).parent / "weights" / f"{name}.safetensors"


def load_weights(source: str | os.PathLike | None = None) -> tuple[Config, Any]:
    """Loads a trained network.

    Args:
      source: a shipped name, a training run's folder (its best checkpoint is taken), the folder of one of its
        checkpoints, or a weights file written by `save_weights`. None takes the shipped default.

    Returns:
      The config and the variables of `SAFNet(config.model)`.

    Raises:
      UserError: unknown name, or a damaged or foreign file or folder.
    """
    if source is None:
        if DEFAULT not in shipped_weights():
            raise UserError("no weights come with this version: name a training run or a weights file with --weights")
        source = DEFAULT
    path = Path(source)
    if path.is_dir():
        from saf_jax.checkpoint import load_run

        return load_run(path)
    if path.is_file():
        return load_weights_file(path)
    if str(source) in shipped_weights():
        return load_weights_file(shipped_path(str(source)))
    names = ", ".join(shipped_weights()) or "none yet"
    raise UserError(f"{source}: no such run folder or weights file, nor shipped weights (shipped: {names})")


def average_weights(sources: Sequence[str | os.PathLike | None]) -> tuple[Config, Any]:
    """The mean of several weights of one network, such as a fine-tuned one and what it started from.

    Weights that have a stretch of training in common often score between theirs, and better than either where each is
    strong at something else. The mean of networks trained apart computes nothing sensible.

    Args:
      sources: each as `load_weights` takes it; one named twice counts twice. After the first there may be some with
        fewer layers, such as what it was grown from: the missing ones count as layers that add nothing.

    Returns:
      The config of the first and the mean of the variables, stored averages of batch norm included.

    Raises:
      UserError: one cannot be loaded, or is another network than the first.

    References:
      Weight-space ensembles, arXiv 2109.01903; model soups, arXiv 2203.05482.
    """
    import jax
    import numpy as np

    from saf_jax.growth import with_layers_of

    config, first = load_weights(sources[0])
    loaded = [first]
    for source in sources[1:]:
        other, variables = load_weights(source)
        if other.model.layers < config.model.layers:
            same_depth = dataclasses.replace(other.model, layers=config.model.layers)
            if same_depth == config.model and other.stft == config.stft:
                other, variables = config, with_layers_of(variables, first)
        _check_same_network(other, config, f"{source}: is another network than {sources[0] or DEFAULT}")
        loaded.append(variables)
    # In float64: with many weights the sum would lose digits.
    return config, jax.tree.map(lambda *leaves: np.mean(leaves, 0, dtype=np.float64).astype(leaves[0].dtype), *loaded)


def _check_same_network(given: Config, wanted: Config, message: str) -> None:
    from saf_jax.config import config_differences

    differences = [text for text in config_differences(given, wanted) if text.split(".")[0] in ("stft", "model")]
    if differences:
        raise UserError(f"{message}; differing: {'; '.join(differences)}")


def initial_variables(config: Config) -> Any:
    """The variables that a training starts from by `train.init_from`; None where it starts anew.

    A causal network may start from one that is the same but for looking ahead: see `without_lookahead`. A larger
    one may start from one with fewer channels and layers: see `saf_jax.growth`.

    Raises:
      UserError: the weights cannot be loaded, or are those of another network.
    """
    source = config.train.init_from
    if not source:
        return None
    given, variables = load_weights(source)
    if config.model.causal and not given.model.causal:
        given = dataclasses.replace(given, model=dataclasses.replace(given.model, causal=True))
        variables = without_lookahead(variables)
    if given.model != config.model and given.stft == config.stft:
        from saf_jax.growth import can_grow, grow

        if can_grow(given.model, config.model):
            if config.train.freeze_norm and config.model.layers > given.model.layers:
                raise UserError(
                    f"train.freeze_norm: the layers that train.init_from={source} has not have no averages to freeze: "
                    "leave it out"
                )
            return grow(variables, given.model, config.model, config.stft.bins, seed=config.train.seed)
    _check_same_network(given, config, f"train.init_from={source}: is another network")
    return variables


def without_lookahead(variables: Any) -> Any:
    """Variables for the causal form of a network: taps that look ahead are dropped, the others stay where they were.

    What is left is worth a start, not more: the network has to be trained with them.

    Args:
      variables: of a network with `causal` off.
    """
    import jax
    import numpy as np

    def convert(leaf: Any) -> Any:
        # Kernels over time are the only arrays of three axes [taps, bands, C]; the middle tap is the present frame's.
        if leaf.ndim != 3:
            return leaf
        present = leaf.shape[0] // 2
        kernel = np.zeros(leaf.shape, leaf.dtype)
        kernel[leaf.shape[0] - 1 - present :] = leaf[: present + 1]
        return kernel

    return jax.tree.map(convert, variables)


def portable(config: Config) -> Config:
    """A config without the folders of its training and what that started from: the reader has others, or none."""
    from saf_jax.config import DataConfig

    return dataclasses.replace(
        config,
        data=DataConfig(crop_seconds=config.data.crop_seconds),
        train=dataclasses.replace(config.train, init_from="", freeze_norm=False),
    )


def save_weights(
    path: str | os.PathLike, config: Config, variables: Any, metadata: dict[str, str] | None = None
) -> None:
    """Writes weights, config and metadata as one safetensors file, atomically.

    Args:
      path: the file.
      config: the network's settings; stored as `portable` leaves them.
      variables: nested dicts of arrays.
      metadata: further text entries, such as a model card.
    """
    import json

    import numpy as np
    from flax import traverse_util
    from safetensors.numpy import save_file

    from saf_jax.config import config_to_dict
    from saf_jax.files import atomic_path
    from saf_jax.version import __version__

    flat = {key: np.ascontiguousarray(value) for key, value in traverse_util.flatten_dict(variables, sep="/").items()}
    entries = {
        **(metadata or {}),
        "format": FORMAT,
        "saf_jax_version": __version__,
        "config": json.dumps(config_to_dict(portable(config))),
    }
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata=entries)


FORMAT = "saf_jax weights 1"


def load_weights_file(path: str | os.PathLike) -> tuple[Config, Any]:
    """Reads a file that `save_weights` wrote; refuses anything else in one line."""
    import json

    import numpy as np
    from flax import traverse_util
    from safetensors import SafetensorError, safe_open

    from saf_jax.config import config_from_dict
    from saf_jax.model.net import variable_shapes

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: is no weights file or is damaged ({error}): fetch or export it again") from error
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: is not a weights file that this version reads ({metadata.get('format', 'no format named')}; "
            f"needed: {FORMAT}): export it again, or update saf_jax"
        )
    try:
        tree = json.loads(metadata["config"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: its config is damaged: fetch or export it again") from error
    config = config_from_dict(tree, where=str(path))
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    variables = traverse_util.unflatten_dict(flat, sep="/")
    wanted = {name: tree for name, tree in variable_shapes(config.model, config.stft.bins).items() if name != "past"}
    wanted = traverse_util.flatten_dict(wanted, sep="/")
    if {key: (leaf.shape, leaf.dtype) for key, leaf in wanted.items()} != {
        key: (value.shape, value.dtype) for key, value in flat.items()
    }:
        raise UserError(f"{path}: its arrays do not fit its config: the file is damaged; fetch or export it again")
    if not all(np.isfinite(value).all() for value in flat.values()):
        raise UserError(f"{path}: its arrays hold NaN or infinite values: train or export it again")
    return config, variables
