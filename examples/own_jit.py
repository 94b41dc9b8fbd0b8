"""Enhancement as a pure function inside a jit of one's own: a gradient with respect to the noisy samples.

python examples/own_jit.py WEIGHTS
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import saf_jax


def main(weights: str) -> None:
    config, variables = saf_jax.load_weights(weights)

    @jax.jit
    @jax.value_and_grad
    def energy_left(samples: jax.Array) -> jax.Array:
        return jnp.sum(saf_jax.enhance(config, variables, samples, config.stft.sample_rate_hz) ** 2)

    noise = np.random.default_rng(0).normal(0, 0.1, (2, config.stft.sample_rate_hz // 10)).astype(np.float32)
    energy, gradient = energy_left(noise)
    print(f"energy before {np.sum(noise**2):.3f}, after {energy:.3f}; largest gradient {np.abs(gradient).max():.3g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
