"""What docs/enhancing.md shows is what happens."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import networks
import pytest
import soundfile
from networks import tone_in_noise

from saf_jax.cli import build_parser
from saf_jax.config import STFTConfig
from saf_jax.pretrained import save_weights

DOC = (Path(__file__).parent.parent / "docs" / "enhancing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)
COMMANDS = [line[2:] for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    words = shlex.split(command.split("|")[-1].split(">")[0])
    assert words[0] == "saf-jax"
    build_parser("enhance").parse_args(words[1:])


@pytest.mark.slow
def test_commands_print_what_is_shown(tmp_path):
    (tmp_path / "recordings" / "monday").mkdir(parents=True)
    for name, seconds, rate, channels in (
        ("noisy.wav", 2, 16000, 1),
        ("recordings/interview.flac", 1, 44100, 2),
        ("recordings/monday/call.wav", 1, 8000, 1),
    ):
        samples = tone_in_noise(seconds * rate * channels).reshape(-1, channels)
        soundfile.write(tmp_path / name, samples, rate)
    (tmp_path / "samples.raw").write_bytes(bytes(16000) + (tone_in_noise(16000) * 32767).astype("<i2").tobytes())
    config = networks.least(stft=STFTConfig())
    save_weights(tmp_path / "least.safetensors", config, networks.net_variables(config))
    # The commands as they stand, but with weights that cost nothing.
    command = tmp_path / "bin" / "saf-jax"
    command.parent.mkdir()
    program = f'"{sys.executable}" -m saf_jax "$@" --weights "{tmp_path}/least.safetensors"'
    command.write_text(f"#!/bin/sh\nexec {program}\n")
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    for block in BLOCKS:
        for shown in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, wanted = shown.partition("\n")
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            pattern = ".*".join(map(re.escape, wanted.split("...")))
            assert re.fullmatch(pattern, done.stdout + done.stderr), (line, done.stdout, done.stderr)
    assert soundfile.info(tmp_path / "careful.flac").frames == 32000
    assert (tmp_path / "enhanced.raw").stat().st_size == 32000
