"""Small networks for tests, with random variables: with the zeros and ones of a fresh one many mistakes cancel."""

import dataclasses
import math
from typing import Any

import numpy as np

from saf_jax.config import Config, ModelConfig, STFTConfig

# 17 bands, 100 frames a second: a second of audio is 1600 samples.
STFT = STFTConfig(sample_rate_hz=1600, window_samples=32, hop_samples=16)
MODEL = ModelConfig(
    width=8,
    layers=1,
    heads=2,
    norm_groups=2,
    attention_kernel=5,
    local_window=3,
    tcn_dilations=(1, 2),
    dense_dilations=(1, 2),
)


def model(**changes: Any) -> ModelConfig:
    """A small network that has every part, with changes."""
    changed = dataclasses.replace(MODEL, **changes)
    changed.check()
    return changed


def config(*, stft: STFTConfig = STFT, **changes: Any) -> Config:
    """A whole config around `model`."""
    return Config(stft=stft, model=model(**changes))


def least(**changes: Any) -> Config:
    """A config whose network is the smallest that takes a signal through: it compiles in a moment."""
    return config(
        **{
            "streams": "complex",
            "width": 4,
            "layers": 1,
            "attention_kernel": 0,
            "local_window": 0,
            "tcn_dilations": (2,),
            "dense_dilations": (1,),
            "outputs": "mask",
            **changes,
        }
    )


def random_variables(module: Any, *args: Any, seed: int = 0) -> Any:
    """Variables of a module called with `args`, every array random and of a size that keeps signals near unit level."""
    import jax

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            values = rng.standard_normal(leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
        elif name in ("bias", "band_bias", "mean"):
            values = rng.normal(0, 0.2, leaf.shape)
        else:
            values = rng.uniform(*{"slope": (0.1, 0.5), "scale": (0.5, 1.5), "variance": (0.5, 2.0)}[name], leaf.shape)
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def net_variables(config: Config, seed: int = 0) -> Any:
    """Random variables of the config's network."""
    import jax.numpy as jnp

    from saf_jax.model.net import SAFNet

    return random_variables(SAFNet(config.model), jnp.zeros((1, 4, config.stft.bins), jnp.complex64), seed=seed)


def spectrum(*shape: int, seed: int = 0) -> np.ndarray:
    """Complex normal noise, complex64."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def tone_in_noise(samples: int, seed: int = 0) -> np.ndarray:
    """A signal with loud and quiet parts: float32 [samples], below full scale."""
    rng = np.random.default_rng(seed)
    n = np.arange(samples)
    envelope = 0.05 + 0.95 * np.sin(2 * np.pi * n / 900 + seed) ** 2
    return (0.3 * envelope * np.sin(0.7 * n) + 0.05 * rng.standard_normal(samples)).astype(np.float32)
