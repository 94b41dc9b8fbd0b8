"""Processes for numeric work beside the main one: spawned, on one thread each, gone when their parent is gone."""

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spawn_pool(jobs: int, *, preload: tuple[str, ...] = (), niceness: int = 0) -> ProcessPoolExecutor:
    """A pool of processes that import nothing of what the caller has loaded.

    Submit within `one_thread_per_process`: the pool starts its processes when it is given work.

    Args:
      jobs: number of processes.
      preload: modules to import at the start where they are installed, so that the first task does not wait for them.
      niceness: added to the processes' niceness.
    """
    return ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(preload, niceness),
    )


def _start_worker(preload: tuple[str, ...], niceness: int) -> None:
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(niceness)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    # A parent that was killed leaves no workers behind.
    threading.Thread(target=end_with_parent, daemon=True).start()
    for name in preload:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)


@contextlib.contextmanager
def one_thread_per_process() -> Iterator[None]:
    """Numeric libraries in processes started within the block use one thread each."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
