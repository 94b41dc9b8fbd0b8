"""What all tests share: eight simulated devices, the real audio, small networks, no traces in the user's cache."""

import os
import pathlib
import shutil
import signal
import tempfile

# Before jax is imported: it reads both only once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# Tests that serve files to themselves do not go by the user's proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

# Commands under test are started as from a terminal also where the tests run under nohup or in the background of a
# script, which ignore these signals.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from saf_jax.jax_defects import avoid_fft_deadlock

avoid_fft_deadlock()

import networks  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# A machine that does something else for a moment fails no test.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Files that take a minute or so: first, so that no process ends with one of them while the others have nothing to do.
_LONG = [
    "demo",
    "training",
    "package",
    "training_processes",
    "training_step",
    "sweep_command",
    "net",
    "transformer",
    "depthwise",
]
_PROGRAMS = pytest.StashKey()


def pytest_configure(config):
    """Tests, and the commands that they start, compile many of the same programs: one cache for all of a run."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        config.stash[_PROGRAMS] = tempfile.mkdtemp(prefix="saf_jax_test_programs_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.stash[_PROGRAMS]
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_unconfigure(config):
    """The process that made the cache removes it; those that it started found it named."""
    if _PROGRAMS in config.stash:
        shutil.rmtree(config.stash[_PROGRAMS], ignore_errors=True)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in _LONG)


@pytest.fixture(scope="session")
def audio_root():
    """The folder of real recordings that SAF_AUDIO names."""
    name = os.environ.get("SAF_AUDIO")
    if not name:
        pytest.skip("SAF_AUDIO is not set: it names the folder of real recordings that this test reads")
    root = pathlib.Path(name)
    if not root.is_dir():
        pytest.fail(f"SAF_AUDIO={name}: no such folder")
    return root


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory):
    """Commands keep compiled programs in the user's cache folder: tests get one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def small_config():
    """A whole config with every part of the network in it, small enough to compile in seconds."""
    return networks.config()


@pytest.fixture
def quick_compile(monkeypatch):
    """Compiles without the costly optimisations, also in commands: for programs that run a few times on little."""
    import jax

    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
