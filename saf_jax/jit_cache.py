"""The persistent cache of compiled programs, so that a command's second start does not compile again."""

import os
from pathlib import Path


def use_compilation_cache() -> None:
    """Keeps compiled programs under the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(base / "saf_jax" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
