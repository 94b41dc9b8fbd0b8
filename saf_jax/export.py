"""Networks for other runtimes: StableHLO through `jax.export`, ONNX. The command `saf-jax export`."""

import argparse
import json
import logging
import os
from collections.abc import Callable
from typing import Any

from saf_jax.config import Config
from saf_jax.errors import UserError

FORMATS = ("safetensors", "stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
_OPSET = 21


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", help="a shipped name, a training run's folder or one of its checkpoints, or a weights file"
    )
    parser.add_argument(
        "--average-with",
        nargs="+",
        default=[],
        metavar="WEIGHTS",
        help="export the mean of these and --weights: of a fine-tuned network and what it started from, for instance",
    )
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="the step that takes a signal a hop further, with its state, instead of the network from spectrum to "
        "spectrum (stablehlo and onnx; needs a causal network)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from saf_jax.pretrained import average_weights, save_weights

    if Path(args.out).exists() and not args.overwrite:
        raise UserError(f"{args.out}: exists already: use --overwrite or another name")
    if args.stream and args.format == "safetensors":
        raise UserError("--stream: goes with stablehlo and onnx: a safetensors file holds the weights of either use")
    config, variables = average_weights([args.weights, *args.average_with])
    if args.format == "safetensors":
        save_weights(args.out, config, variables, {"model_card": model_card(config)})
    else:
        {"stablehlo": save_stablehlo, "onnx": save_onnx}[args.format](args.out, config, variables, stream=args.stream)
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.2f} MB")
    return 0


def model_card(config: Config) -> str:
    """What a weights file is, in a few lines."""
    from saf_jax.info import describe

    facts = describe(config)
    transformer = config.model.layer_kind == "transformer"
    kind = "transformer, the baseline of SAF" if transformer else "SAF"
    latency = facts["algorithmic_latency_ms"]
    latency = "of the whole signal" if latency is None else f"{latency:g} ms"
    return (
        f"Speech enhancement network {kind} (arXiv 2308.02263): {facts['parameters']:,} parameters, "
        f"{facts['gmac_per_second']:g} GMAC per second of audio, {facts['sample_rate_hz']} Hz, "
        f"{'causal' if facts['causal'] else 'not causal'}, latency {latency}. "
        "Read it with saf_jax.load_weights."
    )


def network_function(config: Config, variables: Any) -> Callable:
    """The network as one function of real arrays.

    Returns:
      `network(spectrum)`, float32 [B, T, F, 2] -> the same shape: real and imaginary parts of the linear spectrum of a
      signal at unit level (see `saf_jax.level`) and of its enhanced version.
    """
    import jax
    import jax.numpy as jnp

    from saf_jax.features import compress, decompress
    from saf_jax.model.net import SAFNet

    def network(spectrum: jax.Array) -> jax.Array:
        noisy = compress(jax.lax.complex(spectrum[..., 0], spectrum[..., 1]), config.stft)
        enhanced = decompress(SAFNet(config.model).apply(variables, noisy), config.stft)
        return jnp.stack([jnp.real(enhanced), jnp.imag(enhanced)], axis=-1)

    return network


def step_function(config: Config, variables: Any) -> tuple[Callable, dict[str, Any]]:
    """The streaming step as one function of named arrays.

    Returns:
      `step(samples, state) -> (enhanced, state)`: float32 [1, hop_samples], and the state before the first sample, a
      dict of arrays.

    Raises:
      UserError: the network is not causal.
    """
    import jax

    from saf_jax import streaming

    if not config.model.causal:
        raise UserError(f"--stream: this network looks ahead: {streaming.causal_hint(config.model)}")
    start = streaming.start(config, 1)
    paths, structure = jax.tree_util.tree_flatten_with_path(start)
    names = [f"state_{i:03d}_{path[0].name}" for i, (path, _) in enumerate(paths)]

    def step(samples: jax.Array, state: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        given = jax.tree.unflatten(structure, [state[name] for name in names])
        new, enhanced = streaming.advance(config, variables, given, samples)
        return enhanced, dict(zip(names, jax.tree.leaves(new)))

    return step, dict(zip(names, (leaf for _, leaf in paths)))


def save_stablehlo(path: str | os.PathLike, config: Config, variables: Any, *, stream: bool = False) -> None:
    """Writes a function that `load_stablehlo` reads, for CPU, CUDA and TPU in one file.

    Batch and number of frames of the network are free; the step is of one signal. Weights lie inside.
    """
    import jax
    import jax.numpy as jnp
    from jax import export

    from saf_jax.files import atomic_path

    _check_flatbuffers()
    if stream:
        function, start = step_function(config, variables)
        shapes = [
            jax.ShapeDtypeStruct((1, config.stft.hop_samples), jnp.float32),
            {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in start.items()},
        ]
    else:
        function = network_function(config, variables)
        batch, frames = export.symbolic_shape("batch, frames")
        shapes = [jax.ShapeDtypeStruct((batch, frames, config.stft.bins, 2), jnp.float32)]
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    with atomic_path(path) as temporary:
        temporary.write_bytes(exported.serialize())


def _check_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401 - jax.export needs it and does not bring it
    except ImportError as error:
        raise UserError("StableHLO needs a package that is not installed: pip install 'saf-jax[onnx]'") from error


def load_stablehlo(path: str | os.PathLike) -> Callable:
    """Reads what `save_stablehlo` wrote: a function of arrays; the step's state begins with zeros of its shapes.

    The step's state before the first sample is all zeros, but for "left", which is `saf_jax.streaming.UNENDING`. Its
    shapes, and that of the samples: `jax.export.deserialize(content).in_avals`, in the order of the function's
    arguments.

    Raises:
      UserError: the file cannot be read or is damaged, or flatbuffers is not installed.
    """
    from pathlib import Path

    import jax
    from jax import export

    from saf_jax.files import user_errors

    _check_flatbuffers()
    with user_errors(path, "read"):
        content = Path(path).read_bytes()
    try:
        exported = export.deserialize(bytearray(content))
    except Exception as error:  # of many kinds for damaged files
        raise UserError(f"{path}: is no StableHLO export or is damaged: export it again") from error
    return jax.jit(exported.call)


def save_onnx(path: str | os.PathLike, config: Config, variables: Any, *, stream: bool = False) -> None:
    """Writes an ONNX model: spectrum to spectrum, or the streaming step with its state as further inputs and outputs.

    The network's input "spectrum" and output "enhanced" are as in `network_function`, batch and frames free. The step's
    are "samples" and "enhanced", and for each input "state_..." an output "next_state_...". The model's metadata hold
    the config, and the state before the first sample where it is not zero.
    """
    try:
        import onnx
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError("ONNX export needs packages that are not installed: pip install 'saf-jax[onnx]'") from error
    import jax
    import numpy as np

    from saf_jax.config import config_to_dict
    from saf_jax.files import atomic_path
    from saf_jax.pretrained import portable
    from saf_jax.real_arithmetic import in_real_arithmetic

    # It reports every value without a stored type, of which there are hundreds.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    notes = {"config": json.dumps(config_to_dict(portable(config)))}
    if stream:
        step, start = step_function(config, variables)
        names = list(start)

        def function(samples: jax.Array, *leaves: jax.Array) -> tuple[jax.Array, ...]:
            enhanced, new = in_real_arithmetic(step)(samples, dict(zip(names, leaves)))
            return enhanced, *(new[name] for name in names)

        shapes = [np.zeros((1, config.stft.hop_samples), np.float32), *start.values()]
        inputs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in shapes]
        arguments, results = ["samples", *names], ["enhanced", *(f"next_{name}" for name in names)]
        notes["start"] = json.dumps({name: leaf.tolist() for name, leaf in start.items() if leaf.any()})
    else:
        function = in_real_arithmetic(network_function(config, variables))
        inputs = [("batch", "frames", config.stft.bins, 2)]
        arguments, results = ["spectrum"], ["enhanced"]
    model = to_onnx(function, inputs, model_name="saf_jax", opset=_OPSET, input_names=arguments, output_names=results)
    # While it traces, it puts primitives of its own into jax's functions; what was traced so must not be run.
    jax.clear_caches()
    onnx.helper.set_model_props(model, notes)
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)
