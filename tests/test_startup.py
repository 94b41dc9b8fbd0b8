"""Importing the package costs little beyond jax and flax."""

import subprocess
import sys

SCRIPT = """
import sys, time
import jax, flax.linen
began = time.process_time()
import saf_jax
for name in saf_jax.__all__:
    getattr(saf_jax, name)
spent = time.process_time() - began
heavy = {"librosa", "matplotlib", "grain", "orbax", "tensorboardX", "tensorboard", "scipy", "soundfile", "jax2onnx"}
print(spent, *sorted(heavy & sys.modules.keys()))
"""


def test_all_public_names_are_imported_in_half_a_second_and_load_nothing_heavy():
    before = {"scipy"}  # jax and flax bring it themselves
    out = subprocess.run([sys.executable, "-c", SCRIPT], check=True, text=True, capture_output=True).stdout.split()
    assert not set(out[1:]) - before
    assert float(out[0]) < 0.5
