"""A wav file enhanced with onnxruntime, soundfile and numpy alone; the network is not a causal one.

saf-jax export --format onnx --weights WEIGHTS -o NET.onnx && python examples/onnx_numpy.py NET.onnx IN.wav OUT.wav
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile


def main(network: str, source: str, target: str) -> None:
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    config = json.loads(session.get_modelmeta().custom_metadata_map["config"])["stft"]
    window, hop = config["window_samples"], config["hop_samples"]
    samples, rate = soundfile.read(source, dtype="float32")
    if samples.ndim > 1 or rate != config["sample_rate_hz"]:
        sys.exit(f"error: {source}: one channel at {config['sample_rate_hz']} Hz is needed")
    # The network is trained at unit level: RMS over the hops within 40 dB of the loudest.
    power = np.mean(np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop) ** 2, axis=1)
    level = np.sqrt(power[(power >= 1e-4 * power.max()) & (power > 0)].mean()) if power.any() else 1.0
    # Frame t is centred on sample t * hop; the last one still touches the signal.
    frames, hann = -(-(len(samples) + window // 2) // hop), 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(samples / level, (window // 2, frames * hop + window // 2 - len(samples)))
    spectrum = np.fft.rfft(np.stack([padded[t * hop :][:window] for t in range(frames)]) * hann)
    planes = np.stack([spectrum.real, spectrum.imag], axis=-1).astype(np.float32)
    real, imaginary = np.moveaxis(session.run(["enhanced"], {"spectrum": planes[None]})[0][0], -1, 0)
    # Digital silence stays silent, whatever the network adds.
    rows = np.fft.irfft((real + 1j * imaginary) * spectrum.any(axis=1, keepdims=True), window) * hann
    total, weights = np.zeros_like(padded), np.full_like(padded, 1e-8)
    for t, row in enumerate(rows):  # weighted overlap-add
        total[t * hop :][:window] += row
        weights[t * hop :][:window] += hann**2
    soundfile.write(target, (level * total / weights)[window // 2 :][: len(samples)], rate, subtype="FLOAT")


if __name__ == "__main__":
    main(*sys.argv[1:])
