"""What all tests share: eight simulated devices, the real audio, small networks, no traces in the user's cache."""

import os
import pathlib

# Before jax is imported: it reads both only once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import networks
import pytest


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
def quick_compile():
    """Compiles without the costly optimisations: for programs that run once on a few frames."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
