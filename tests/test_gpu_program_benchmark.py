"""What `benchmarks/gpu_program.py` counts in a compiled program."""

import importlib.util
from pathlib import Path

import pytest

PROGRAM = """
HloModule step, is_scheduled=true

%fused (a: f32[4,2]) -> f32[4,2] {
  %a = f32[4,2]{1,0} parameter(0)
  ROOT %b = f32[4,2]{1,0} multiply(%a, %a)
}

%body (state: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %state = (s32[], f32[4,2]{1,0}) parameter(0)
  %x = f32[4,2]{1,0} get-tuple-element(%state), index=1
  %n = s32[] get-tuple-element(%state), index=0
  %y = f32[4,2]{1,0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="net/square"}
  ROOT %next = (s32[], f32[4,2]{1,0}) tuple(%n, %y)
}

ENTRY %main (p: bf16[4,2], q: (s32[], f32[4,2])) -> bf16[4,4] {
  %p = bf16[4,2]{1,0} parameter(0)
  %q = (s32[], f32[4,2]{1,0}) parameter(1)
  %loop = (s32[], f32[4,2]{1,0}) while(%q), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %product = (bf16[4,4]{1,0}, s8[1024]{0}) custom-call(%p, %p), custom_call_target="__cublas$lt$matmul"
  ROOT %out = bf16[4,4]{1,0} get-tuple-element(%product), index=0
}
"""


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parent.parent / "benchmarks" / "gpu_program.py"
    spec = importlib.util.spec_from_file_location("gpu_program", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kernels_are_counted_with_what_they_read_and_write(benchmark):
    assert list(benchmark.kernels(PROGRAM)) == [
        ("kLoop", "net/square", 3 * (32 + 32), 3),
        # 16 bytes read twice and 32 written; scratch space is no traffic.
        ("__cublas$lt$matmul", "?", 16 + 16 + 32, 1),
    ]
