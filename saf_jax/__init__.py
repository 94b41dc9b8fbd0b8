"""Speech enhancement with Spectrum Attention Fusion (arXiv 2308.02263) in JAX and Flax.

The names below are imported when they are first used: `import saf_jax` itself loads nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from saf_jax.version import __version__

_HOMES = {
    "Config": "config",
    "ModelConfig": "config",
    "STFTConfig": "config",
    "Enhancer": "enhancement",
    "SAFNet": "model.net",
    "UserError": "errors",
    "compress": "features",
    "count_parameters": "info",
    "decompress": "features",
    "enhance": "enhancement",
    "istft": "transforms",
    "load_config": "config",
    "load_weights": "pretrained",
    "stft": "transforms",
    "stream": "streaming",
}

__all__ = [
    "Config",
    "Enhancer",
    "ModelConfig",
    "SAFNet",
    "STFTConfig",
    "UserError",
    "__version__",
    "compress",
    "count_parameters",
    "decompress",
    "enhance",
    "istft",
    "load_config",
    "load_weights",
    "stft",
    "stream",
]

if TYPE_CHECKING:
    from saf_jax.config import Config, ModelConfig, STFTConfig, load_config
    from saf_jax.enhancement import Enhancer, enhance
    from saf_jax.errors import UserError
    from saf_jax.features import compress, decompress
    from saf_jax.info import count_parameters
    from saf_jax.model.net import SAFNet
    from saf_jax.pretrained import load_weights
    from saf_jax.streaming import stream
    from saf_jax.transforms import istft, stft


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saf_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"saf_jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
