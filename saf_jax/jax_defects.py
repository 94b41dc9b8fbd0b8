"""Ways around defects of single JAX versions."""

import importlib.metadata
import os

_SINGLE_THREADED = "--xla_cpu_multi_thread_eigen"


def avoid_fft_deadlock() -> None:
    """Under jaxlib 0.11, lets XLA's CPU operations run on one thread each; to be called before JAX looks for devices.

    A Fourier transform of that version waits on a thread of XLA's pool for others of the same pool: as many transforms
    at once as there are cores wait for each other for ever, which a training on two cores meets within seconds (seen
    with 0.11.2, not with 0.10.2 and 0.12.0; openxla/xla pull request 46347). GPUs and TPUs are not concerned.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return
    if version.startswith("0.11.") and _SINGLE_THREADED not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_SINGLE_THREADED}=false".strip()
