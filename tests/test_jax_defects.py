import importlib.metadata
import os

import pytest

from saf_jax.jax_defects import avoid_fft_deadlock


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("0.10.2", "--xla_foo", "--xla_foo"),
        ("0.12.0.1", "", ""),
        ("0.11.2", "", "--xla_cpu_multi_thread_eigen=false"),
        ("0.11.0", "--xla_foo", "--xla_foo --xla_cpu_multi_thread_eigen=false"),
        ("0.11.2", "--xla_cpu_multi_thread_eigen=true", "--xla_cpu_multi_thread_eigen=true"),
    ],
)
def test_transforms_are_kept_apart_under_the_version_that_deadlocks(monkeypatch, version, before, after):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"jaxlib": version}[name])
    monkeypatch.setenv("XLA_FLAGS", before)
    avoid_fft_deadlock()
    assert os.environ["XLA_FLAGS"] == after


def test_without_jaxlib_nothing_happens(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    avoid_fft_deadlock()
    assert "XLA_FLAGS" not in os.environ
