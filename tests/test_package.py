"""The wheel, in a fresh environment outside the checkout: it imports, has its configs, trains a step, enhances."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SCRIPT = """
import pathlib, sys
import numpy as np
import saf_jax
assert "site-packages" in saf_jax.__file__, saf_jax.__file__
assert not {"jax", "librosa", "matplotlib", "grain", "orbax"} & sys.modules.keys()
from saf_jax import audio
rng = np.random.default_rng(0)
for kind in ("clean", "noisy"):
    audio.write(pathlib.Path(kind) / "a.wav", audio.Audio(rng.standard_normal(8000).astype("float32") * 0.1, 16000))
from saf_jax.cli import main
small = ["model.width=8", "model.heads=2", "model.layers=1", "model.attention_kernel=3", "data.crop_seconds=0.3"]
data = [f"data.{p}_{k}={k}" for p in ("train", "valid") for k in ("clean", "noisy")]
assert main(["train", "--config", "paper", "--workdir", "run", "--quiet", "--set", *small, *data, "train.steps=1"]) == 0
assert main(["enhance", "noisy", "-o", "out", "--weights", "run"]) == 0
assert main(["enhance", "noisy", "-o", "shipped"]) == 0
assert main(["eval", "--enhanced", "noisy", "--clean", "clean", "--noisy", "noisy", "--out", "results"]) == 2
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy: a build in place would leave its traces in the checkout.
    source = folder / "source"
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True)
    listed = names.stdout.splitlines() if names.returncode == 0 else []
    if not listed:
        pytest.skip("the files of the package are listed by git, which is not here")
    for name in listed:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source],
        check=True, capture_output=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


def test_wheel_holds_configs_weights_folder_types_and_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    listed = subprocess.run(
        ["git", "ls-files", "saf_jax", "configs"], cwd=ROOT, text=True, capture_output=True, check=True
    )
    tracked = {name.replace("configs/", "saf_jax/configs/", 1) if name.startswith("configs/") else name
               for name in listed.stdout.splitlines()}  # fmt: skip
    assert {"saf_jax/weights/saf-tiny.safetensors", "saf_jax/templates/report.html.j2", "saf_jax/py.typed"} <= tracked
    assert tracked <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    assert not [
        name for name in names if name.startswith(("tests/", "benchmarks/")) or name.endswith((".flac", ".wav"))
    ]


@pytest.mark.ci
def test_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "uv", "venv", "-q", "--python", sys.executable, environment], check=True)
    python = environment / "bin" / "python"
    # The versions that the lock names: what is new on the index today is another day's work.
    versions = ["--constraint", ROOT / "requirements.lock"]
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", python, *versions, wheel]
    subprocess.run(command, check=True)
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    result = subprocess.run([python, "-c", SCRIPT], cwd=tmp_path, env=variables, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "a.wav").exists() and (tmp_path / "shipped" / "a.wav").exists()
    # pesq and pystoi are an extra; their absence is one line that names it.
    assert "saf-jax[eval]" in result.stderr and "Traceback" not in result.stderr
