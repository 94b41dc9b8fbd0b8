"""What benchmarks/training.py counts and sums, on programs and profiles whose figures are known."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from saf_jax.config import LossConfig


@pytest.fixture
def benchmarks(monkeypatch):
    """Makes the benchmarks' modules importable."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    monkeypatch.delitem(sys.modules, "training", raising=False)


def test_bytes_of_sums_over_devices(benchmarks):
    from training import reduced_bytes

    def step(x):
        return jax.lax.psum({"a": x, "b": x[:3].astype(jnp.bfloat16)}, "devices")

    program = jax.pmap(step, axis_name="devices").lower(jnp.ones((8, 5, 7))).compile().as_text()
    count, total = reduced_bytes(program)
    # XLA:CPU sums bfloat16 in float32.
    assert count in (1, 2) and total in (5 * 7 * 4 + 3 * 7 * 2, 5 * 7 * 4 + 3 * 7 * 4)
    assert reduced_bytes("  %x = f32[2,3]{1,0} add(%a, %b)\n") == (0, 0)
    assert reduced_bytes("  ROOT %r = (f32[10]{0}, f32[]) all-reduce(%a, %b), channel_id=1\n") == (1, 44)


def test_every_term_of_the_loss_is_timed_but_the_discriminators(benchmarks):
    from training import calls_of_terms

    config = networks.least()
    calls = calls_of_terms(dataclasses.replace(config, data=dataclasses.replace(config.data, crop_seconds=0.5)))
    assert set(calls) == {field.name for field in dataclasses.fields(LossConfig)} - {"metric"}
    for name, call in calls.items():
        value, gradient = call()
        assert np.isfinite(value) and any(np.any(np.asarray(leaf) != 0) for leaf in gradient.values()), name


@pytest.mark.parametrize(
    "origin, part",
    [
        ("jit(_fun)/jvp(SAFNet)/encoder_complex/dense/norm_1/mul", "forward, norm"),
        ("jit(_fun)/transpose(jvp(SAFNet))/layer_3/tcn/time_0/jit(depthwise_conv2d)/cond/branch_0_fun/while/body/add",
         "backward, time"),
        ("jit(_fun)/jvp(SAFNet)/mul", "forward, network's input and output"),
        ("jit(_fun)/transpose(jvp())/mul", "backward, STFT and loss"),
        ("jit(_fun)/jvp(jit(floor_divide))/div", "forward, STFT and loss"),
        ("jit(_fun)/mul", "optimiser, averages and checks"),
    ],
)  # fmt: skip
def test_parts_of_the_step(benchmarks, origin, part):
    from profiles import part_of

    assert part_of(origin) == part


def test_origin_of_a_fusion_that_does_not_tell(benchmarks):
    from profiles import operation_origins

    text = """
%inner.1 (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %t.1 = f32[2]{0} tanh(%p), metadata={op_name="early"}
  ROOT %m.1 = f32[2]{0} multiply(%t.1, %t.1), metadata={op_name="last"}
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  ROOT %wrapped = f32[2]{0} fusion(%a), kind=kLoop, calls=%inner.1
}
"""
    origins = operation_origins(text)
    assert origins["wrapped"] == "last" and origins["t.1"] == "early" and "a" not in origins


def test_seconds_of_an_operation_without_those_inside_it(benchmarks):
    from profiles import operation_seconds

    def event(start, duration, operation=None):
        stats = [] if operation is None else [("hlo_op", operation)]
        return SimpleNamespace(start_ns=start * 1e9, duration_ns=duration * 1e9, stats=stats)

    loop = [event(0, 10, "while"), event(1, 2, "add"), event(4, 3, "mul"), event(5, 1, "tanh"), event(20, 1, "add")]
    lines = [SimpleNamespace(name="thread", events=[*loop, event(0, 50)])]
    seconds = operation_seconds(SimpleNamespace(planes=[SimpleNamespace(name="/host:CPU", lines=lines)]))
    assert sorted(seconds) == [("add", 1.0), ("add", 2.0), ("mul", 2.0), ("tanh", 1.0), ("while", 5.0)]
    # Where there is a GPU, its streams count and nothing else.
    streams = [SimpleNamespace(name="Stream #13(Compute)", events=[event(0, 3, "fusion")]),
               SimpleNamespace(name="XLA Ops", events=[event(0, 3, "fusion")])]  # fmt: skip
    planes = [SimpleNamespace(name="/device:GPU:0", lines=streams), SimpleNamespace(name="/host:CPU", lines=lines)]
    assert operation_seconds(SimpleNamespace(planes=planes)) == [("fusion", 3.0)]


def test_profile_of_a_program_on_this_device(benchmarks):
    from profiles import profile

    @jax.jit
    def heavy(a):
        return jnp.sum(jnp.tanh(a @ a))

    a = jnp.ones((400, 400))
    compiled = heavy.lower(a).compile()
    shares, known = profile(lambda: jax.block_until_ready(compiled(a)), compiled.as_text(), steps=2)
    assert sum(share.seconds for share in shares) > 0 and known > 0.5
