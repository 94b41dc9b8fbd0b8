"""What starting costs: `saf-jax enhance` of a short file for the first and the second time, and importing the package.

    python benchmarks/startup.py [--weights NAME|PATH] [--rounds 3]

Each figure comes from a process of its own. Commands: wall time of a 5 s file with empty caches of compiled programs
and of Python's bytecode (bar: 25 s), and with what that run left in them (bar: 5 s), with the processor time beside
it: where other work keeps the cores busy, wall time says little. Imports: seconds of `import saf_jax` with all public
names, with jax and flax.linen imported before (bar: 0.5 s), the median of the rounds. Without --weights:
configs/saf_tiny.yaml with random weights. With PYTHONDONTWRITEBYTECODE set and no bytecode installed, each start
costs 2 s more.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMPORT_BAR, FIRST_BAR, SECOND_BAR = 0.5, 25.0, 5.0
SECONDS, RATE = 5, 16000
IMPORTS = """
import time
began = time.monotonic()
import jax, flax.linen
between = time.monotonic()
import saf_jax
for name in saf_jax.__all__:
    getattr(saf_jax, name)
print(between - began, time.monotonic() - between)
"""


def write_random_weights(path: Path) -> None:
    import jax
    import jax.numpy as jnp

    from saf_jax.config import load_config
    from saf_jax.model.net import SAFNet
    from saf_jax.pretrained import save_weights

    config = load_config("saf_tiny")
    spectrum = jnp.zeros((1, 8, config.stft.bins), jnp.complex64)
    save_weights(path, config, jax.jit(SAFNet(config.model).init)(jax.random.key(0), spectrum))


def seconds_of(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall time and processor time of a command, which must succeed."""

    def processor() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    began, before = time.monotonic(), processor()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began, processor() - before


def judge(what: str, seconds: float, bar: float, more: str) -> bool:
    print(f"{what}: {seconds:.2f} s (bar: {bar:g} s; {more}): {'reached' if seconds <= bar else 'MISSED'}", flush=True)
    return seconds <= bar


def main() -> int:
    import soundfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="a shipped name, a training run's folder, or a weights file")
    parser.add_argument("--rounds", type=int, default=3, help="of the imports")
    args = parser.parse_args()

    reached = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Nothing that was compiled before may help: neither programs nor Python's bytecode, which jax has 2 s of.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "PYTHON"))}
        environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        weights = args.weights or str(folder / "random.safetensors")
        if not args.weights:
            write_random_weights(Path(weights))
        noise = 0.1 * np.random.default_rng(0).standard_normal(SECONDS * RATE)
        soundfile.write(folder / "in.wav", noise, RATE)
        command = [sys.executable, "-m", "saf_jax", "enhance", str(folder / "in.wav"), "-o", str(folder / "out.wav")]
        command += ["--overwrite", "--weights", weights]
        for time_of_run, bar in (("first", FIRST_BAR), ("second", SECOND_BAR)):
            wall, processor = seconds_of(command, environment)
            what = f"saf-jax enhance of {SECONDS} s, {time_of_run} time"
            reached.append(judge(what, wall, bar, f"processor time {processor:.2f} s"))
        rounds = []
        for _ in range(args.rounds):
            out = subprocess.check_output([sys.executable, "-c", IMPORTS], env=environment, text=True)
            rounds.append([float(word) for word in out.split()])
        base, own = (statistics.median(column) for column in zip(*rounds))
        more = f"jax and flax.linen before it: {base:.2f} s"
        reached.append(judge("import saf_jax, all public names", own, IMPORT_BAR, more))
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
