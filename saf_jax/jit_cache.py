"""The persistent cache of compiled programs, so that a command's second start does not compile again."""

import contextlib
import os
from pathlib import Path

_MOST_BYTES = 2 << 30


def use_compilation_cache() -> None:
    """Keeps compiled programs under the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "saf_jax" / "jax"
    _prune(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _prune(folder: Path) -> None:
    """Removes the oldest programs where there are many: each config, shape and version of JAX adds some for good."""
    with contextlib.suppress(OSError):
        entries = [(entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(folder)]
        total = sum(size for _, size, _ in entries)
        if total <= _MOST_BYTES:
            return
        # Down to half, so that not every start has something to remove.
        for _, size, path in sorted(entries):
            if total <= _MOST_BYTES / 2:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size
