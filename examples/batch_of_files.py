"""A folder of recordings in batches through one `Enhancer`: for a CPU, a GPU, or several of them.

python examples/batch_of_files.py WEIGHTS IN_FOLDER OUT_FOLDER

`saf-jax enhance IN_FOLDER -o OUT_FOLDER` does the same with channels, rates and tags kept, at bounded memory.
"""

import sys
from pathlib import Path

import saf_jax
from saf_jax import audio

FILES_AT_ONCE = 64


def main(weights: str, source: str, target: str) -> None:
    enhancer = saf_jax.Enhancer(*saf_jax.load_weights(weights))
    rate = enhancer.config.stft.sample_rate_hz
    # Not what an earlier call made, and no two for one output.
    inside = Path(target).resolve()
    paths = [path for path in audio.list_audio(source) if inside not in path.resolve().parents]
    names = [path.relative_to(source).with_suffix("") for path in paths]
    if len(set(names)) < len(names):
        sys.exit("two recordings would go to one file: give them names of their own")
    for first in range(0, len(paths), FILES_AT_ONCE):
        group = paths[first : first + FILES_AT_ONCE]
        for path, enhanced in zip(group, enhancer.many([audio.read_mono(path, rate) for path in group], rate)):
            output = Path(target) / path.relative_to(source).with_suffix(".wav")
            audio.write(output, audio.Audio(enhanced, rate))
            print(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
