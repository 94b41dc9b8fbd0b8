"""What a long training must not do: compile again, call back to the host, grow."""

import collections
import json
import re
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from training_runs import SMALL, end, end_all, start, write_pairs

from saf_jax import parallel, training
from saf_jax.config import load_config
from saf_jax.training_step import build_train_step, init_state

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(autouse=True)
def none_is_left_behind():
    yield
    end_all()


@pytest.mark.ci
def test_nothing_is_compiled_after_the_first_steps(data, tmp_path, monkeypatch):
    settings = [
        *SMALL,
        *data,
        "train.steps=9",
        "train.validate_every=3",
        "train.log_every=1",
        "train.average_decay=0.9",
    ]
    compilations: collections.Counter = collections.Counter()
    step = 0

    def on_event(name, _seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compilations[step] += 1

    after_step = training._Loop._after_step

    def counted(loop):
        nonlocal step
        after_step(loop)
        step += 1

    monkeypatch.setattr(training._Loop, "_after_step", counted)
    jax.monitoring.register_event_duration_secs_listener(on_event)
    try:
        training.train_and_evaluate(load_config("paper", settings), tmp_path / "run", quiet=True)
    finally:
        jax.monitoring.unregister_event_duration_listener(on_event)
    # The first validation and checkpoint have programs of their own; from then on there is nothing new.
    assert compilations[0] > 0
    assert not [number for number, count in compilations.items() if number >= 3 and count]


def test_the_step_never_calls_the_host():
    config = load_config("paper", SMALL)
    step = parallel.map_over_devices(build_train_step(config), donate_state=True)
    state = jax.eval_shape(lambda: init_state(config))
    size = config.train.batch_size
    batch = {
        "noisy": np.zeros((size, 8000), np.float32),
        "clean": np.zeros((size, 8000), np.float32),
        "samples": np.full(size, 8000, np.int32),
    }
    batch = jax.tree.map(lambda a: a.reshape(jax.local_device_count(), -1, *a.shape[1:]), batch)
    program = step.lower(state, batch).as_text()
    assert "stablehlo.dot_general" in program
    assert "callback" not in program and "infeed" not in program and "outfeed" not in program


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_memory_does_not_grow(data, tmp_path):
    """The tiny config for 2,000 steps: from the 400th on it takes no more."""
    settings = [
        *data,
        "data.crop_seconds=0.25",
        "train.batch_size=2",
        "train.score_files=0",
        "train.validate_every=100",
    ]
    process = start(tmp_path / "run", [*settings, "train.steps=2000"], config="tiny")
    log, resident = tmp_path / "run" / "log.jsonl", {}
    while process.poll() is None:
        time.sleep(0.2)
        lines = log.read_text().splitlines() if log.exists() else []
        status = Path(f"/proc/{process.pid}/status").read_text()
        if lines and (found := re.search(r"VmRSS:\s+(\d+) kB", status)):
            resident[json.loads(lines[-1]).get("step", 0)] = int(found[1])
    status, _, err = end(process)
    assert status == 0, err
    early = max(kilobytes for step, kilobytes in resident.items() if 300 <= step <= 500)
    late = max(kilobytes for step, kilobytes in resident.items() if step >= 1800)
    assert late < 1.03 * early, resident
