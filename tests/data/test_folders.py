"""Folders that are written as a whole, and labels of files."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from saf_jax.data.folders import labels, whole_folder
from saf_jax.errors import UserError


def test_folder_appears_when_finished_only(tmp_path):
    target = tmp_path / "deep" / "out"
    with whole_folder(target, lambda folder: False) as partial:
        (partial / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    with pytest.raises(RuntimeError), whole_folder(target, lambda folder: True) as partial:
        (partial / "x").write_text("2")
        raise RuntimeError
    assert (target / "x").read_text() == "1"
    with whole_folder(target, lambda folder: True) as partial:
        (partial / "y").write_text("3")
    assert [path.name for path in target.iterdir()] == ["y"]
    with pytest.raises(UserError, match="exists and holds something else"), whole_folder(target, lambda folder: False):
        pass
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_kill_leaves_nothing_that_counts_and_old_remains_go(tmp_path):
    script = (
        "import time, pathlib, sys\nfrom saf_jax.data.folders import whole_folder\n"
        "with whole_folder(pathlib.Path(sys.argv[1]), lambda f: True) as p:\n"
        "    (p / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "out"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    with whole_folder(tmp_path / "out", lambda folder: True):
        pass
    assert left.exists()
    os.utime(left, (0, 0))
    with whole_folder(tmp_path / "out", lambda folder: True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_labels_of_a_large_flat_folder_and_a_table_with_a_gap(tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    for number in range(30):
        soundfile.write(folder / f"{number}.wav", np.ones(4) / 2, 16000)
    assert set(labels(folder).values()) == {"noise"}
    table = tmp_path / "noise.csv"
    table.write_text("file,kind\n" + "".join(f"{number}.wav,k{number % 3}\n" for number in range(29)))
    with pytest.raises(UserError, match=r"29\.wav: is not named in .*noise\.csv"):
        labels(folder)
    with table.open("a") as file:
        file.write("29.wav,k0\n")
    assert set(labels(folder).values()) == {"k0", "k1", "k2"}
    table.write_text("something,else\n1,2\n")
    assert set(labels(folder).values()) == {"noise"}
