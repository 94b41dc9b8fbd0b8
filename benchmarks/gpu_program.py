"""What the program of a training step for an NVIDIA GPU moves and holds: compiled for one, which need not be there.

XLA compiles for a GPU that it is only told of. The compiled program says how much memory it takes and which kernels it
launches; the bytes that each reads and writes, added up, over the bandwidth of the memory tell how long a step takes
at least, since these networks are bound by memory. Not in it: what caches save, and what kernels miss of the bandwidth.
For comparison the same with the layouts left to the compiler (`saf_jax.model.depthwise`).

    pip install "jax[cuda12]"      # in an environment of its own, besides saf-jax; no driver is needed
    python benchmarks/gpu_program.py [--config saf_small] [--top 20] [--set train.batch_size=32 model.layers=8 ...]
"""

import argparse
import collections
import math
import os
import re
import time

# An H200, as XLA describes devices (stream_executor's DeviceDescription); NVIDIA's data sheet has 4.8 TB/s.
BANDWIDTH = 4.8e12
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""
ITEM_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "c64": 8,
    "s64": 8,
    "u64": 8,
}
ARRAY = re.compile(rf"\b({'|'.join(ITEM_BYTES)})\[([\d,]*)\]")
INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
# Names for what is there already, or (done) the second half of one thing.
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "copy-done", "async-done"}


def compile_step(config, batch_size: int):
    """The compiled training step of one GPU, and the seconds that compiling took."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from saf_jax.parallel import DEVICES
    from saf_jax.training_step import build_train_step, init_state

    topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology="1x1x1")
    mesh = topologies.make_mesh(topology, (1,), (DEVICES,))
    whole, shares = jax.P(), jax.P(DEVICES)

    def argument(axes, shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, axes))

    samples = round(config.data.crop_seconds * config.stft.sample_rate_hz)
    state = jax.tree.map(
        lambda leaf: argument(whole, leaf.shape, leaf.dtype), jax.eval_shape(lambda: init_state(config))
    )
    batch = {name: argument(shares, (batch_size, samples)) for name in ("noisy", "clean")}
    batch["samples"] = argument(shares, (batch_size,), jnp.int32)
    if config.loss.metric:
        batch["labels"] = argument(shares, (batch_size,))
    step = jax.shard_map(
        build_train_step(config), mesh=mesh, in_specs=(whole, shares), out_specs=whole, check_vma=False
    )
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    began = time.perf_counter()
    return lowered.compile(), time.perf_counter() - began


def array_bytes(text: str) -> int:
    """Bytes of all arrays in an HLO shape."""
    return sum(
        ITEM_BYTES[kind] * math.prod(map(int, filter(None, axes.split(",")))) for kind, axes in ARRAY.findall(text)
    )


def kernels(hlo: str):
    """Yields (kind, name in the source, bytes read and written, times) of each kernel of a compiled program."""
    computations, entry, lines = {}, "", []
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := INSTRUCTION.match(line.strip()):
            lines.append((*found.groups(), line))

    def walk(name: str, times: int):
        shapes = {result: shape for result, shape, *_ in computations[name]}
        for _, shape, operation, rest, line in computations[name]:
            called = re.findall(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)", line)
            if operation in FREE:
                continue
            if operation in ("while", "call", "conditional", "async-start"):
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line) if operation == "while" else None
                for inner in called:
                    yield from walk(inner, times * int(trips[1] if trips else 1))
                continue
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            size = sum(array_bytes(shapes.get(operand, "")) for operand in operands)
            # A matrix product's s8 result is its scratch space.
            size += array_bytes(re.sub(r"s8\[\d+\]", "", shape) if operation == "custom-call" else shape)
            kind = re.search(r"kind=(\w+)|custom_call_target=\"([^\"]+)\"", line)
            source = re.search(r'op_name="([^"]*)"', line)
            yield (kind[1] or kind[2] if kind else operation), source[1] if source else "?", size * times, times

    yield from walk(entry, 1)


def measure(config, title: str, top: int) -> int:
    """Prints what the program of the config's step takes; returns the bytes that it moves."""
    compiled, seconds = compile_step(config, config.train.batch_size)
    memory = compiled.memory_analysis()
    moved, launches, kinds, sources = 0, 0, collections.Counter(), collections.Counter()
    for kind, source, size, times in kernels(compiled.as_text()):
        moved, launches = moved + size, launches + times
        kinds[kind] += size
        sources[re.sub(r"_\d+(?=/)", "_N", source)] += size
    audio = config.train.batch_size * config.data.crop_seconds
    print(f"{title}: compiled in {seconds:.0f} s; memory {memory.temp_size_in_bytes / 1e9:.1f} GB; {launches} kernels")
    print(f"  {moved / 1e9:.1f} GB moved a step of {audio:g} s of audio: {1e3 * moved / BANDWIDTH:.1f} ms at 4.8 TB/s")
    print("  " + ", ".join(f"{kind} {size / 1e9:.1f} GB" for kind, size in kinds.most_common(5)))
    for source, size in sources.most_common(top):
        print(f"  {size / 1e9:7.2f} GB  {source}")
    return moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="saf_small")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--top", type=int, default=0, help="operations to list, those that move most first")
    args = parser.parse_args()
    # No driver is asked, and no choice of algorithms is timed.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    )

    import jax

    from saf_jax.config import load_config
    from saf_jax.model import depthwise

    config = load_config(args.config, args.set)
    kept = measure(config, "as it is", args.top)
    jax.clear_caches()
    depthwise._laid_out_as_written = lambda x: x
    free = measure(config, "layouts left to the compiler", args.top)
    print(f"left to the compiler / as it is: {free / kept:.2f}")


if __name__ == "__main__":
    main()
