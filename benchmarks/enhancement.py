"""Long files: how much memory they take, and whether they come out as well as their parts alone.

    python benchmarks/enhancement.py memory [--minutes 3 180] [--rate 16000] [--weights NAME|PATH]
    SAF_AUDIO=DIR python benchmarks/enhancement.py joined [--weights NAME|PATH]

`memory` runs `saf-jax enhance` on files of both lengths, each in a process of its own, and prints the ratio of their
peak resident memory (bar: 1.15). The recordings are those of SAF_AUDIO again and again, or generated voices in noise.
Without --weights a network of a few parameters with random weights does: memory over time is the pipeline's.

`joined` joins the real test pairs with pauses of silence and of room noise, enhances the joined file and each pair
alone, and prints the differences of WB-PESQ and SI-SDR (bars: 0.05 and 0.2 dB in the mean).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np

from saf_jax import audio, metrics
from saf_jax.data import noises

# Starts a command and prints its peak. In a process of its own: Linux counts the memory of the process that starts
# another into that one's peak, and this one has imported jax and compiled.
_LAUNCHER = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""

MEMORY_BAR, PESQ_BAR, SI_SDR_BAR_DB = 1.15, 0.05, 0.2


def recordings(rate: int) -> Iterator[np.ndarray]:
    """Noisy speech without end: float32 [n] each."""
    if root := os.environ.get("SAF_AUDIO"):
        for path in cycle(audio.list_audio(Path(root) / "dns_no_reverb" / "noisy")):
            yield audio.read_mono(path, rate)
    rng = np.random.default_rng(0)
    while True:
        samples = 10 * rate
        voice = noises.babble(rng, [noises.music(rng, samples, rate)], samples)
        yield (0.05 * voice + 0.02 * noises.hiss(rng, samples, rate)).astype(np.float32)


def write_long(path: Path, minutes: float, rate: int) -> Path:
    import soundfile

    left = round(60 * minutes * rate)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for samples in recordings(rate):
            file.write(samples[:left])
            left -= len(samples[:left])
            if not left:
                return path
    raise AssertionError("recordings do not end")


def write_random_weights(path: Path) -> Path:
    import jax
    import jax.numpy as jnp

    from saf_jax.config import load_config
    from saf_jax.model.net import SAFNet
    from saf_jax.pretrained import save_weights

    config = load_config("tiny", ["model.width=8", "model.heads=2", "model.layers=1"])
    spectrum = jnp.zeros((1, 8, config.stft.bins), jnp.complex64)
    save_weights(path, config, jax.jit(SAFNet(config.model).init)(jax.random.key(0), spectrum))
    return path


def peak_megabytes(command: list[str]) -> float:
    """Peak resident memory of a command, which must succeed."""
    done = subprocess.run([sys.executable, "-S", "-c", _LAUNCHER, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: failed")
    *said, peak = done.stdout.splitlines()
    print("\n".join(said), flush=True)
    return int(peak) / (1024 if sys.platform.startswith("linux") else 1024**2)


def memory(args: argparse.Namespace) -> bool:
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = args.weights or write_random_weights(folder / "random.safetensors")
        # The first run compiles, which takes memory of its own: it is not counted.
        for minutes in (min(args.minutes), *args.minutes):
            path = write_long(folder / f"{minutes:g}_minutes.wav", minutes, args.rate)
            command = [sys.executable, "-m", "saf_jax", "enhance", str(path), "-o", str(folder / "out.wav")]
            peaks.append(peak_megabytes([*command, "--overwrite", "--weights", str(weights)]))
            path.unlink()
    for minutes, peak in zip(args.minutes, peaks[1:]):
        print(f"{minutes:g} minutes: {peak:.0f} MB at most")
    ratio = max(peaks[1:]) / min(peaks[1:])
    print(f"ratio {ratio:.3f} (bar: {MEMORY_BAR}): {'reached' if ratio <= MEMORY_BAR else 'MISSED'}")
    return ratio <= MEMORY_BAR


def pauses(room: np.ndarray, rng: np.random.Generator, rate: int) -> Iterator[np.ndarray]:
    """Silence and room noise at -50 dB, 0.5 to 3 s, in turn."""
    room = room * 10 ** (-50 / 20) / np.sqrt(np.mean(np.square(room)))
    while True:
        yield np.zeros(int(rate * rng.uniform(0.5, 3)), np.float32)
        start = rng.integers(0, len(room) // 2)
        yield room[start : start + int(rate * rng.uniform(0.5, 3))]


def joined(args: argparse.Namespace) -> bool:
    from saf_jax.enhance_files import enhance_files
    from saf_jax.enhance_jobs import plan_jobs
    from saf_jax.enhancement import Enhancer
    from saf_jax.jit_cache import use_compilation_cache
    from saf_jax.pretrained import load_weights
    from saf_jax.recomposition import Treatment

    root, rate, rng = Path(os.environ["SAF_AUDIO"]), metrics.SAMPLE_RATE_HZ, np.random.default_rng(0)
    corpus = root / "voicebank_demand"
    pairs = audio.list_pairs(corpus / "test" / "clean", corpus / "test" / "noisy")
    pairs += audio.list_pairs(corpus / "train" / "clean", corpus / "train" / "noisy")[: 60 - len(pairs)]
    room = audio.read_mono(audio.list_audio(root / "dev" / "noise")[0], rate)
    use_compilation_cache()
    enhancer = Enhancer(*load_weights(args.weights))
    with tempfile.TemporaryDirectory() as name:
        folder, parts, starts = Path(name), [], []
        for pair, pause in zip(pairs, pauses(room, rng, rate)):
            samples = audio.read_mono(pair.noisy, rate)
            audio.write(folder / "in" / f"{pair.name}.wav", audio.Audio(samples, rate, subtype="FLOAT"))
            starts.append(sum(map(len, parts)) + len(pause))
            parts += [pause, samples]
        whole = np.concatenate(parts)
        audio.write(folder / "in" / "joined.wav", audio.Audio(whole, rate, subtype="FLOAT"))
        for outcome in enhance_files(enhancer, plan_jobs([str(folder / "in")], folder / "out"), Treatment()):
            if outcome.error:
                raise outcome.error
        output = audio.read_mono(folder / "out" / "joined.wav", rate)
        differences, alone_scores = [], []
        for pair, start in zip(pairs, starts):
            clean = audio.read_mono(pair.clean, rate)
            alone = audio.read_mono(folder / "out" / f"{pair.name}.wav", rate)
            scores = [
                (metrics.wb_pesq(clean, enhanced), metrics.si_sdr_db(clean, enhanced))
                for enhanced in (alone, output[start : start + len(clean)])
            ]
            alone_scores.append(scores[0])
            differences.append(np.subtract(scores[1], scores[0]))
    pesq, si_sdr_db = np.mean(alone_scores, axis=0)
    print(f"{len(pairs)} pairs, {len(whole) / rate:.0f} s joined; alone: WB-PESQ {pesq:.3f}, SI-SDR {si_sdr_db:.2f} dB")
    mean, worst = np.mean(differences, axis=0), np.min(differences, axis=0)
    reached = abs(mean[0]) <= PESQ_BAR and abs(mean[1]) <= SI_SDR_BAR_DB
    print(
        f"joined: WB-PESQ {mean[0]:+.4f} (bar: {PESQ_BAR}), SI-SDR {mean[1]:+.3f} dB (bar: {SI_SDR_BAR_DB}) in the mean"
    )
    print(f"worst file {worst[0]:+.3f}, {worst[1]:+.2f} dB: {'reached' if reached else 'MISSED'}")
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    for name, function in (("memory", memory), ("joined", joined)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--weights", help="a shipped name, a training run's folder, or a weights file")
        if name == "memory":
            command.add_argument("--minutes", type=float, nargs="+", default=[3, 180])
            command.add_argument("--rate", type=int, default=16000, help="of the files")
    args = parser.parse_args()
    if args.what == "joined" and not os.environ.get("SAF_AUDIO"):
        print("SAF_AUDIO is not set: it names the folder of real recordings", file=sys.stderr)
        return 2
    return 0 if args.function(args) else 1


if __name__ == "__main__":
    sys.exit(main())
