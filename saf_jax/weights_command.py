"""The command `saf-jax weights`: the networks that come with the package, and which of them suits this machine."""

import argparse
import json
import time
from typing import Any

from saf_jax.errors import UserError

# Long enough that what a signal costs at its ends does not matter, short enough to wait for.
MEASURED_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recommend", action="store_true", help="measure each here and name the best that is faster than real time"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from saf_jax.pretrained import shipped_weights

    names = shipped_weights()
    if not names:
        raise UserError("no weights come with this version: train a network (saf-jax train) and name its run")
    rows = [facts(name) for name in names]
    if args.recommend:
        from saf_jax.jit_cache import use_compilation_cache

        use_compilation_cache()
        for row in rows:
            row["real_time_factor"] = measure(row["name"])
    best = recommended(rows) if args.recommend else None
    if args.json:
        print(json.dumps({"weights": rows, "recommended": best} if args.recommend else {"weights": rows}, indent=2))
        return 0
    for row in rows:
        print(_line(row))
    if args.recommend:
        print(f"recommended here: {best}" if best else "none is faster than real time here")
    return 0


def facts(name: str) -> dict[str, Any]:
    """What is known of shipped weights: size and cost, counted; score and licences, from their model card.

    Args:
      name: a shipped name.

    Returns:
      "name", "parameters", "gmac_per_second", "causal", "algorithmic_latency_ms", "megabytes", and the entries of the
      card's head: "data_licences", "wb_pesq_voicebank59", ...
    """
    from saf_jax.info import describe
    from saf_jax.pretrained import load_weights, shipped_path

    network = describe(load_weights(name)[0])
    kept = ("parameters", "gmac_per_second", "causal", "algorithmic_latency_ms")
    size = round(shipped_path(name).stat().st_size / 1e6, 2)
    return {"name": name, **{key: network[key] for key in kept}, "megabytes": size, **card_head(name)}


def card_head(name: str) -> dict[str, Any]:
    """The facts at the head of a shipped network's model card, between two lines of `---`."""
    import yaml

    from saf_jax.pretrained import shipped_path

    card = shipped_path(name).with_suffix(".md")
    if not card.is_file():
        raise UserError(f"{card}: is missing: shipped weights need a model card with a head")
    text = card.read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1])


def measure(name: str) -> float:
    """Real-time factor of a shipped network on this machine, without compilation."""
    import numpy as np

    from saf_jax.enhancement import Enhancer
    from saf_jax.pretrained import load_weights

    config, variables = load_weights(name)
    enhancer, rate = Enhancer(config, variables), config.stft.sample_rate_hz
    samples = np.random.default_rng(0).normal(0, 0.1, round(MEASURED_SECONDS * rate)).astype(np.float32)
    enhancer(samples, rate)
    began = time.perf_counter()
    enhancer(samples, rate)
    return round((time.perf_counter() - began) / MEASURED_SECONDS, 4)


def recommended(rows: list[dict[str, Any]]) -> str | None:
    """The name with the highest WB-PESQ among those with a real-time factor below 1; None if there is none."""
    fast = [row for row in rows if row["real_time_factor"] < 1]
    return max(fast, key=lambda row: row["wb_pesq_voicebank59"])["name"] if fast else None


def _line(row: dict[str, Any]) -> str:
    speed = f", {1 / row['real_time_factor']:.0f} times real time here" if "real_time_factor" in row else ""
    latency = row["algorithmic_latency_ms"]
    latency = "of the whole signal" if latency is None else f"{latency:.0f} ms"
    return (
        f"{row['name']}: {row['parameters']:,} parameters, {row['gmac_per_second']:g} GMAC/s, {row['megabytes']:g} MB, "
        f"{'causal, ' if row['causal'] else ''}latency {latency}{speed}; WB-PESQ "
        f"{row['wb_pesq_voicebank59']:.2f} (noisy {row['noisy_wb_pesq_voicebank59']:.2f}) on 59 pairs of Voice Bank + "
        f"DEMAND; data: {row['data_licences']}"
    )
