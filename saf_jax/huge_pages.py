"""Memory in huge pages for training on a CPU."""

import os
import sys


def restart_with_huge_pages() -> None:
    """Starts the running command anew with glibc's huge pages on, once; elsewhere than on Linux it does nothing.

    A training step on a CPU writes some hundred arrays of many megabytes, each in memory fresh from the kernel: with
    4 KiB pages the page faults cost as much as the arithmetic (`benchmarks/training.py --parts pages` measures it).
    glibc reads the setting when a process starts, hence the restart. Call it before anything is under way.
    """
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ or "jax" in sys.modules:
        # Where jax is loaded, a program called us, not a person's shell: it must not be replaced under way.
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
