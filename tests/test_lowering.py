"""What runs on GPU and TPU is lowered for them on this machine; whether it runs there only they can show."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from saf_jax import parallel
from saf_jax.config import load_config
from saf_jax.enhancement import enhance_padded
from saf_jax.training_step import build_train_step, build_validation_step, init_state

PLATFORMS = ["cuda", "tpu"]
SAMPLES = 48000

# The paper's network, and one with all that it leaves out.
SETTINGS = {
    "paper": [],
    "other": [
        "model.layers=1",
        "model.norm=batch",
        "model.causal=true",
        "model.fusion=gate",
        "model.frequency_stride=4",
        "train.precision=bfloat16",
        "train.schedule=cosine",
    ],
}
each_config = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)

# What keeps layouts in NVIDIA's programs for training; exported only on request.
LAYOUTS = export.DisabledSafetyCheck.custom_call("LayoutConstraint")


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def convolutions(exported):
    return exported.mlir_module().count("stablehlo.convolution")


@each_config
def test_training_and_validation_lower_for_gpu_and_tpu(settings):
    config = load_config("paper", settings)
    state = jax.eval_shape(lambda: init_state(config))
    devices = jax.device_count()
    batch = {"noisy": array(devices, 2, SAMPLES), "clean": array(devices, 2, SAMPLES)}
    batch["samples"] = array(devices, 2, dtype=jnp.int32)
    for step in (build_train_step(config), build_validation_step(config)):
        mapped = jax.jit(parallel.map_over_devices(step))
        exported = export.export(mapped, platforms=PLATFORMS, disabled_checks=[LAYOUTS])(state, batch)
        assert exported.platforms == tuple(PLATFORMS)
        assert exported.nr_devices == devices
        module = exported.mlir_module()
        assert "all_reduce" in module
        assert "stablehlo.convolution" in module


@each_config
def test_enhancement_lowers_for_gpu_and_tpu(settings):
    config = load_config("paper", settings)
    variables = jax.eval_shape(lambda: init_state(config).variables)
    arguments = (config, variables, array(2, SAMPLES), array(2, dtype=jnp.int32))
    exported = export.export(enhance_padded, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == tuple(PLATFORMS)
    assert exported.out_avals[0].shape == (2, SAMPLES)
    assert convolutions(exported) > 0
    assert "custom_call" not in exported.mlir_module()
    # On CPU the depth-wise convolutions are sums of shifted products.
    assert convolutions(export.export(enhance_padded, platforms=["cpu"])(*arguments)) == 0
