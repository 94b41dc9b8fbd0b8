"""Small training runs for tests: data, settings, and the commands of one or several processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from saf_jax import audio
from saf_jax.checkpoint import Checkpoints
from saf_jax.training_step import init_state

ROOT = Path(__file__).parent.parent

SMALL = [
    "model.width=8",
    "model.heads=2",
    "model.layers=1",
    "model.frequency_stride=4",
    "model.attention_kernel=3",
    "model.tcn_dilations=[1]",
    "model.dense_dilations=[1]",
    "data.crop_seconds=0.5",
    "train.batch_size=8",
    "train.score_files=0",
]


def write_pairs(folder, count=3, seconds=1.2):
    """Pairs of a tone in noise, clean and noisy; returns the settings of the data section that name them."""
    random = np.random.default_rng(0)
    time = np.arange(int(16000 * seconds)) / 16000
    for i in range(count):
        clean = 0.3 * np.sin(2 * np.pi * (200 + 150 * i) * time) * (np.sin(2 * np.pi * 3 * time) > 0)
        noisy = clean + 0.1 * random.standard_normal(len(time))
        for kind, samples in (("clean", clean), ("noisy", noisy)):
            audio.write(folder / kind / f"{i}.wav", audio.Audio(samples.astype(np.float32), 16000))
    return [f"data.{part}_{kind}={folder / kind}" for part in ("train", "valid") for kind in ("clean", "noisy")]


_started: list[subprocess.Popen] = []


def start(workdir, settings, devices=1, arguments=(), largest_file_bytes=None, config="paper"):
    """Starts `train.py` in a process of its own with so many simulated devices; writing larger files fails."""
    command = [sys.executable, ROOT / "train.py", "--config", config, "--workdir", workdir, "--quiet", *arguments]
    if largest_file_bytes is not None:
        # The limit outlives exec. Not by preexec_fn: it would fork this process, in which jax has threads.
        code = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file_bytes},) * 2)"
        command = [sys.executable, "-c", f"{code}; os.execv(sys.argv[1], sys.argv[1:])", *command]
    flags = f"--xla_force_host_platform_device_count={devices}"
    process = subprocess.Popen(
        [*command, "--set", *settings],
        env={**os.environ, "XLA_FLAGS": flags},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _started.append(process)
    return process


def start_together(workdir, settings, processes, devices):
    """Starts processes that train together, over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    place = ["--coordinator", address, "--process-count", str(processes), "--process-index"]
    return [start(workdir, settings, devices, [*place, str(index)]) for index in range(processes)]


def end(process, timeout_seconds=300):
    """Waits for a process; returns its status and what it said."""
    out, err = process.communicate(timeout=timeout_seconds)
    return process.returncode, out, err


def newest(config, workdir):
    """Step, state and meta of the newest checkpoint of a run."""
    return Checkpoints(workdir, 1).restore_newest(jax.eval_shape(lambda: init_state(config)))


def end_all():
    """Ends what a failed test left running."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
        if not process.stdout.closed:
            process.communicate()
