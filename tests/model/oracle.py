"""The network in plain numpy, written from the formulas: float64, explicit loops, no implementation tricks.

Arrays are [B, T, F, C]. `p` is a module's own subtree of the parameters, `s` that of the stored averages.
"""

import math

import numpy as np

from saf_jax.config import ModelConfig


def masked(x, frames):
    out = np.array(x, np.float64)
    for b, valid in enumerate([] if frames is None else frames):
        out[b, valid:] = 0
    return out


def pointwise(p, *inputs):
    out = np.concatenate(inputs, axis=-1) @ np.asarray(p["kernel"], np.float64)
    return out + np.asarray(p["bias"], np.float64) if "bias" in p else out


def depthwise(p, x, frames, dilation=1, causal=False):
    kernel = np.asarray(p["kernel"], np.float64)
    rows, columns, _ = kernel.shape
    x, y = masked(x, frames), np.zeros(x.shape)
    for t in range(x.shape[1]):
        for i in range(rows):
            source = t + (i - (rows - 1 if causal else rows // 2)) * dilation
            if not 0 <= source < x.shape[1]:
                continue
            for f in range(x.shape[2]):
                for j in range(columns):
                    band = f + j - columns // 2
                    if 0 <= band < x.shape[2]:
                        y[:, t, f] += x[:, source, band] * kernel[i, j]
    return y + np.asarray(p["bias"], np.float64)


def prelu(p, x):
    return np.maximum(x, 0) + np.asarray(p["slope"], np.float64) * np.minimum(x, 0)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(p, s, x, config: ModelConfig):
    x = np.asarray(x, np.float64)
    out = np.empty(x.shape)
    groups = {"layer": 1, "group": config.norm_groups, "instance": x.shape[-1], "batch": 1}[config.norm]
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            if config.norm == "batch":
                out[b, t] = (x[b, t] - s["mean"]) / np.sqrt(np.asarray(s["variance"], np.float64) + 1e-5)
            elif config.norm == "layer":
                for f in range(x.shape[2]):
                    values = x[b, t, f]
                    out[b, t, f] = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
            else:
                for channels in np.split(np.arange(x.shape[-1]), groups):
                    values = x[b, t][:, channels]
                    out[b, t][:, channels] = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    return out * np.asarray(p["scale"], np.float64) + np.asarray(p["bias"], np.float64)


def dense_block(p, s, x, frames, config):
    features = [x]
    for i, dilation in enumerate(config.dense_dilations):
        y = pointwise(p[f"pointwise_{i}"], *features)
        y = prelu(p[f"prelu_{i}"], norm(p[f"norm_{i}"], s.get(f"norm_{i}"), y, config))
        features.append(depthwise(p[f"depthwise_{i}"], y, frames, dilation, config.causal))
    return features[-1]


def side_by_side(x, stride):
    folded = np.zeros((*x.shape[:2], -(-x.shape[2] // stride), stride * x.shape[3]))
    for f in range(x.shape[2]):
        folded[:, :, f // stride, f % stride * x.shape[3] : (f % stride + 1) * x.shape[3]] = x[:, :, f]
    return folded


def encoder(p, s, x, frames, config):
    x = np.asarray(x, np.float64)
    x = pointwise(p["expand"], side_by_side(x, config.frequency_stride) if config.fold_first else x)
    x = prelu(p["prelu_in"], norm(p["norm_in"], s.get("norm_in"), x, config))
    x = dense_block(p.get("dense", {}), s.get("dense", {}), x, frames, config)
    stride, bands = 1 if config.fold_first else config.frequency_stride, x.shape[2]
    kernel = np.asarray(p["downsample"]["kernel"], np.float64).reshape(stride, config.width, config.width)
    y = np.zeros((*x.shape[:2], -(-bands // stride), config.width)) + np.asarray(p["downsample"]["bias"], np.float64)
    for f in range(bands):
        y[:, :, f // stride] += x[:, :, f] @ kernel[f % stride]
    return prelu(p["prelu_out"], norm(p["norm_out"], s.get("norm_out"), y, config))


def decoder(p, s, x, frames, config, bands):
    x = dense_block(p.get("dense", {}), s.get("dense", {}), x, frames, config)
    stride, width = config.frequency_stride, config.width
    if config.fold_first:
        y = pointwise(p["out"], prelu(p["prelu"], norm(p["norm"], s.get("norm"), pointwise(p["upsample"], x), config)))
        channels = y.shape[-1] // stride
        return np.stack([y[:, :, f // stride, f % stride * channels :][..., :channels] for f in range(bands)], axis=2)
    y = np.empty((*x.shape[:2], bands, width))
    for f in range(bands):
        part = slice(f % stride * width, f % stride * width + width)
        kernel, bias = (np.asarray(p["upsample"][name], np.float64)[..., part] for name in ("kernel", "bias"))
        y[:, :, f] = x[:, :, f // stride] @ kernel + bias
    return pointwise(p["out"], prelu(p["prelu"], norm(p["norm"], s.get("norm"), y, config)))


def convolutional_attention(p, s, x, frames, config):
    y = norm(p["norm"], s.get("norm"), x, config)
    weights = depthwise(p["large_kernel"], gelu(pointwise(p["attention"], y)), frames, 1, config.causal)
    return x + pointwise(p["out"], weights * pointwise(p["value"], y))


def attend(query, key, value, heads, window):
    """Each band's softmax over itself and its neighbours, one head after another."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out, bands, size = np.empty(query.shape), query.shape[2], query.shape[3] // heads
    for b, t, f, h in np.ndindex(*query.shape[:3], heads):
        part = slice(h * size, (h + 1) * size)
        near = [n for n in range(f - window // 2, f + window // 2 + 1) if 0 <= n < bands]
        scores = np.array([query[b, t, f, part] @ key[b, t, n, part] / math.sqrt(size) for n in near])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[b, t, f, part] = sum(weight * value[b, t, n, part] for weight, n in zip(weights, near))
    return out


def local_attention(p, s, x, config):
    y = norm(p["norm"], s.get("norm"), x, config)
    query, key, value = (pointwise(p[name], y) for name in ("query", "key", "value"))
    return x + pointwise(p["out"], attend(query, key, value, config.heads, config.local_window))


def tcn(p, s, x, frames, config):
    for i, dilation in enumerate(config.tcn_dilations):
        y = pointwise(p[f"in_{i}"], norm(p[f"norm_{i}"], s.get(f"norm_{i}"), x, config))
        y = depthwise(p[f"time_{i}"], y, frames, dilation, config.causal)
        x = x + pointwise(p[f"out_{i}"], prelu(p[f"prelu_{i}"], y))
    return x


def saf_layer(p, s, x, frames, config):
    if config.attention_kernel:
        x = convolutional_attention(p["attention"], s.get("attention", {}), x, frames, config)
    if config.local_window:
        x = local_attention(p["local"], s.get("local", {}), x, config)
    return tcn(p.get("tcn", {}), s.get("tcn", {}), x, frames, config)


def attend_to_all(query, key, value, heads, frames=None):
    """Softmax over all positions of a sequence, one query of one head after another: [B, M, N, C], N frames or bands.

    With `frames` only so many positions of each signal may be attended to; where there are none, the result is 0.
    """
    out, size = np.zeros(query.shape), query.shape[3] // heads
    for b, m, n, h in np.ndindex(*query.shape[:3], heads):
        part = slice(h * size, (h + 1) * size)
        seen = range(query.shape[2] if frames is None else frames[b])
        weights = np.array([math.exp(query[b, m, n, part] @ key[b, m, i, part] / math.sqrt(size)) for i in seen])
        for weight, i in zip(weights, seen):
            out[b, m, n, part] += weight / weights.sum() * value[b, m, i, part]
    return out


def self_attention(p, s, x, frames, config, over):
    y = norm(p["norm"], s.get("norm"), x, config)
    query, key, value = (pointwise(p[name], y) for name in ("query", "key", "value"))
    if over == "frequency":
        mixed = attend_to_all(query, key, value, config.heads)
    else:
        turned = [np.moveaxis(part, 1, 2) for part in (query, key, value)]
        mixed = np.moveaxis(attend_to_all(*turned, config.heads, frames), 1, 2)
    return x + pointwise(p["out"], mixed)


def transformer_layer(p, s, x, frames, config):
    for over in ("frequency", "time"):
        x = self_attention(p[over], s.get(over, {}), x, frames, config, over)
    part, y = p["feedforward"], norm(p["feedforward"]["norm"], s.get("feedforward", {}).get("norm"), x, config)
    return x + pointwise(part["out"], gelu(pointwise(part["in"], y)))


def positions(frames, bands, channels):
    """[T, F, C]: sines and cosines of the frame in the first half of the channels, of the band in the second."""
    out, half = np.empty((frames, bands, channels)), channels // 2
    for t, f, c in np.ndindex(*out.shape):
        position, place, size = (t, c, half) if c < half else (f, c - half, channels - half)
        pairs = -(-size // 2)
        angle = position / 10000 ** (place % pairs / pairs)
        out[t, f, c] = math.sin(angle) if place < pairs else math.cos(angle)
    return out


def fusion(p, streams, config):
    if len(streams) == 1:
        return streams[0]
    first, second = streams
    if config.fusion == "add":
        return first + second
    if config.fusion == "concatenate":
        return pointwise(p["join"], first, second)
    return first + pointwise(p["out"], pointwise(p["gate"], second) * pointwise(p["value"], first))


def net(variables, spectrum, frames, config: ModelConfig):
    """The paper's flow, with magnitude and phase taken as such: complex [B, T, F]."""
    p, s = variables["params"], variables.get("batch_stats", {})
    spectrum = np.array(spectrum, np.complex128)
    spectrum[..., [0, -1]] = spectrum[..., [0, -1]].real
    magnitude, phase = np.abs(spectrum), np.arctan2(spectrum.imag, spectrum.real)
    known = {
        "magnitude_phase": np.stack([magnitude, phase], -1),
        "magnitude": magnitude[..., None],
        "complex": np.stack([spectrum.real, spectrum.imag], -1),
    }
    wanted = ("magnitude_phase", "complex") if config.streams == "both" else (config.streams,)
    x = fusion(
        p.get("fusion"),
        [encoder(p[f"encoder_{n}"], s.get(f"encoder_{n}", {}), known[n], frames, config) for n in wanted],
        config,
    )
    layer = saf_layer
    if config.band_bias:
        x = x + np.asarray(p["band_bias"], np.float64)
    if config.layer_kind == "transformer":
        layer, x = transformer_layer, x + positions(*x.shape[1:])
    for i in range(config.layers):
        x = layer(p[f"layer_{i}"], s.get(f"layer_{i}", {}), x, frames, config)
    bands, estimate = spectrum.shape[-1], 0
    if config.outputs != "bias":
        logits = decoder(p["mask_decoder"], s.get("mask_decoder", {}), x, frames, config, bands)[..., 0]
        estimate = magnitude * np.exp(1j * phase) / (1 + np.exp(-logits))
    if config.outputs != "mask":
        bias = decoder(p["bias_decoder"], s.get("bias_decoder", {}), x, frames, config, bands)
        estimate = estimate + bias[..., 0] + 1j * bias[..., 1]
    return masked(estimate.real, frames) + 1j * masked(estimate.imag, frames)
