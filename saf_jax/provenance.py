"""Where results come from: versions of the packages, commit of the code."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from saf_jax.version import __version__


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of saf_jax, Python and the packages that are installed, by name."""
    found = {"saf_jax": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the checkout that the code runs from, "-dirty" added where files were changed; None when installed."""
    folder = Path(__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
