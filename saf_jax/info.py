"""What a network is: parameters, cost, time resolution, delay. The command `saf-jax info`."""

import argparse
import json
import math
from typing import Any

from saf_jax.config import Config, add_set_argument


def count_parameters(variables: Any) -> int:
    """Number of trained parameters in `model.init(...)`'s variables, or in their "params" alone."""
    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.get("params", variables)))


def describe(config: Config) -> dict[str, Any]:
    """Facts about a config, by name, as JSON values.

    Returns:
      "parameters"; "gmac_per_second" (10^9 multiply-accumulates for a second of audio, STFT excluded; where there are
      transformer layers, whose cost grows with the length, of a signal of one second); "stft" and its frame rate;
      "receptive_field_ms" (span of input that one output sample depends on, the level normalisation excluded) and its
      parts before and after; "algorithmic_latency_ms" (how much later than a sample its enhanced version can be known:
      the window for a causal network, window and future context otherwise). Receptive field, its parts and latency are
      None for transformer layers, which see the whole signal.
    """
    from saf_jax.model.cost import context_frames, count_costs, count_macs_per_second

    parameters, _ = count_costs(config)
    past, future = context_frames(config.model)
    stft = config.stft

    def milliseconds(samples: float) -> float:
        return 1000 * samples / stft.sample_rate_hz

    def if_bounded(value: float) -> float | None:
        # JSON has no infinity.
        return None if math.isinf(value) else value

    # A sample lies under at most window / hop frames, and the first sample of a Hann window is zero.
    frames_seen = past + future + stft.window_samples // stft.hop_samples - 1
    # Half a hop more where half a window is not whole hops.
    latency_samples = future * stft.hop_samples + stft.window_samples + stft.window_samples // 2 % stft.hop_samples
    return {
        "parameters": parameters,
        "gmac_per_second": round(count_macs_per_second(config) / 1e9, 4),
        "sample_rate_hz": stft.sample_rate_hz,
        "window_ms": milliseconds(stft.window_samples),
        "hop_ms": milliseconds(stft.hop_samples),
        "bins": stft.bins,
        "compression": stft.compression,
        "causal": config.model.causal,
        "receptive_field_ms": if_bounded(milliseconds(frames_seen * stft.hop_samples + stft.window_samples - 1)),
        "context_frames_before": if_bounded(past),
        "context_frames_after": if_bounded(future),
        "algorithmic_latency_ms": if_bounded(milliseconds(latency_samples)),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="a config file, or the name of one that comes with the package")
    source.add_argument(
        "--weights", help="a shipped name, a training run's folder or one of its checkpoints, or a weights file"
    )
    add_set_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from saf_jax.config import load_config
    from saf_jax.errors import UserError
    from saf_jax.model.cost import count_macs_per_second

    if args.weights is not None:
        from saf_jax.pretrained import load_weights

        if args.set:
            raise UserError("--set goes with --config: weights fix their own settings")
        config, _ = load_weights(args.weights)
    else:
        config = load_config(args.config, args.set)
    facts = describe(config)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    kind = "causal" if facts["causal"] else "not causal"
    whole = facts["receptive_field_ms"] is None
    grows = f" in 1 s, {count_macs_per_second(config, 10) / 1e9:.3f} in 10 s (grows with the length)" if whole else ""
    print(f"parameters           {facts['parameters']:,}")
    print(f"cost                 {facts['gmac_per_second']:.3f} GMAC per second of audio{grows}")
    print(
        f"STFT                 {facts['window_ms']:g} ms window, {facts['hop_ms']:g} ms hop, {facts['bins']} bins, "
        f"compression {facts['compression']:g}, {facts['sample_rate_hz']} Hz"
    )
    if whole:
        print(f"receptive field      whole file\nalgorithmic latency  whole file ({kind})")
        return 0
    print(
        f"receptive field      {facts['receptive_field_ms']:.1f} ms "
        f"({facts['context_frames_before']} frames before, {facts['context_frames_after']} after)"
    )
    print(f"algorithmic latency  {facts['algorithmic_latency_ms']:.1f} ms ({kind})")
    return 0
