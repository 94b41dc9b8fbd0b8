"""Each example as a person starts it."""

import os
import subprocess
import sys
from pathlib import Path

import networks
import numpy as np
import pytest
from networks import tone_in_noise

from saf_jax import audio
from saf_jax.enhancement import Enhancer
from saf_jax.pretrained import save_weights

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIG = networks.least(causal=True)


@pytest.fixture
def folder(tmp_path):
    save_weights(tmp_path / "w.safetensors", CONFIG, networks.net_variables(CONFIG))
    audio.write(tmp_path / "a.wav", audio.Audio(tone_in_noise(1003), 1600, subtype="FLOAT"))
    return tmp_path


def start(name, folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, EXAMPLES / name, "w.safetensors", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=True, text=True, capture_output=True).stdout


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("live_stream.py", ("a.wav", "out/a.wav")), ("service_threads.py", ("out", "a.wav", "a.wav"))],
    ids=["live_stream", "service_threads"],
)
def test_file_to_file(folder, name, arguments):
    start(name, folder, *arguments)
    wanted = Enhancer(CONFIG, networks.net_variables(CONFIG))(tone_in_noise(1003), 1600)
    np.testing.assert_allclose(audio.read(folder / "out" / "a.wav").samples[:, 0], wanted, atol=1e-4)


def test_own_jit(folder):
    assert "energy before" in start("own_jit.py", folder)
