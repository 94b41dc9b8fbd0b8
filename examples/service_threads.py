"""One `Enhancer` for all threads of a service: compiled once, called from anywhere.

python examples/service_threads.py WEIGHTS OUT_FOLDER IN.wav ...
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import saf_jax
from saf_jax import audio


def main(weights: str, folder: str, *sources: str) -> None:
    enhancer = saf_jax.Enhancer(*saf_jax.load_weights(weights))

    def answer(source: str) -> Path:
        rate = enhancer.config.stft.sample_rate_hz
        target = Path(folder) / Path(source).with_suffix(".wav").name
        audio.write(target, audio.Audio(enhancer(audio.read_mono(source, rate), rate), rate))
        return target

    with ThreadPoolExecutor(4) as threads:
        for target in threads.map(answer, sources):
            print(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
