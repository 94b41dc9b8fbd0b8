"""One `Enhancer` for all threads of a service: compiled once, called from anywhere.

python examples/service_threads.py WEIGHTS OUT_FOLDER IN.wav ...
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import saf_jax
from saf_jax import audio
from saf_jax.jax_defects import avoid_fft_deadlock


def main(weights: str, folder: str, *sources: str) -> None:
    # Threads enhance side by side, which one version of JAX needs help with.
    avoid_fft_deadlock()
    targets = [Path(folder) / Path(source).with_suffix(".wav").name for source in sources]
    if len(set(targets)) < len(targets):
        sys.exit("two recordings would go to one file: give them names of their own")
    enhancer = saf_jax.Enhancer(*saf_jax.load_weights(weights))

    def answer(source: str, target: Path) -> Path:
        rate = enhancer.config.stft.sample_rate_hz
        audio.write(target, audio.Audio(enhancer(audio.read_mono(source, rate), rate), rate))
        return target

    with ThreadPoolExecutor(4) as threads:
        for target in threads.map(answer, sources, targets):
            print(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
