"""A causal network on samples as they come, here from a file in the microphone's place, hop by hop.

python examples/live_stream.py WEIGHTS IN.wav OUT.wav
"""

import sys

import numpy as np

import saf_jax
from saf_jax import audio
from saf_jax.streaming import delay_samples


def main(weights: str, source: str, target: str) -> None:
    config, variables = saf_jax.load_weights(weights)
    rate, hop = config.stft.sample_rate_hz, config.stft.hop_samples
    samples = audio.read_mono(source, rate)
    # The output lags behind by a window less a hop: as many samples of silence bring out the end.
    delay = delay_samples(config)
    padded = np.pad(samples, (0, delay + -(len(samples) + delay) % hop))
    init, step = saf_jax.stream(config, variables)
    state, enhanced = init(), []
    for chunk in padded.reshape(-1, hop):
        state, out = step(state, chunk)
        enhanced.append(out)
    audio.write(target, audio.Audio(np.concatenate(enhanced)[delay:][: len(samples)], rate))


if __name__ == "__main__":
    main(*sys.argv[1:])
