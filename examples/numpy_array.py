"""A numpy array in, one out: any rate, one signal or several of one length; here made of a file's channels.

python examples/numpy_array.py WEIGHTS IN.wav OUT.wav
"""

import sys

import numpy as np
import soundfile

import saf_jax


def main(weights: str, source: str, target: str) -> None:
    config, variables = saf_jax.load_weights(weights)
    samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    enhanced: np.ndarray = saf_jax.enhance(config, variables, samples.T, rate)
    soundfile.write(target, enhanced.T, rate, subtype="FLOAT")


if __name__ == "__main__":
    main(*sys.argv[1:])
