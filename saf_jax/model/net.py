"""The whole network: compressed noisy spectrum in, compressed estimate of the clean spectrum out."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList

from saf_jax.config import ModelConfig
from saf_jax.features import magnitude_phase_real_imaginary
from saf_jax.model.decoder import SpectrumDecoder
from saf_jax.model.delay import Delay, check_pieces, dense_delay, layer_delay, network_delay, works_in_pieces
from saf_jax.model.encoder import SpectrumEncoder
from saf_jax.model.fusion import SAFLayer, StreamFusion
from saf_jax.model.layers import add_bias
from saf_jax.model.transformer import TransformerLayer, add_positions


class SAFNet(nn.Module):
    """Spectrum Attention Fusion network (arXiv 2308.02263).

    Attributes:
      config: the network's settings.
      axis_name: name of a mapped axis over which batch norm shares its statistics in training.
      dtype: of the computation between input and output; parameters, norms and outputs are float32.
      remat: the activations inside a layer are not kept for the way back but computed again.
    """

    config: ModelConfig
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, spectrum: jax.Array, frames: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Estimates the clean spectrum.

        Args:
          spectrum: complex64 [B, T, F], compressed domain, of a signal at unit level.
          frames: int32 [B], number of frames of each signal; what lies beyond is zeroed before every operation that
            mixes time, so that padding never changes the result. Or bool [B, T], which frames are the signal's.
            None: all T.
          train: batch norm takes the batch's statistics (apply with `mutable=["batch_stats"]`).

        Returns:
          complex64 [B, T, F], compressed domain: `mask * magnitude * exp(i phase) + bias`; 0 beyond `frames`. Applied
          with `mutable=["past"]`, of the frames that came `network_delay` frames earlier (see `saf_jax.model.delay`).

        Raises:
          ValueError: shapes that are none of these.
          UserError: applied with `mutable=["past"]`, with transformer layers, which need the whole signal.
        """
        if spectrum.ndim != 3:
            raise ValueError(f"spectrum must be [B, T, F], not of shape {spectrum.shape}")
        if frames is not None and frames.shape not in (spectrum.shape[:1], spectrum.shape[:2]):
            raise ValueError(
                f"frames must be [B] or [B, T] of the spectrum {spectrum.shape}, not of shape {frames.shape}"
            )
        if works_in_pieces(self):
            check_pieces(self.config)
        mask = None
        if frames is not None:
            inside = frames if frames.ndim == 2 else jnp.arange(spectrum.shape[1]) < frames[:, None]
            mask = inside[:, :, None, None]
        elif works_in_pieces(self):
            # What a delay gives before the first frame must count as beyond the signal.
            mask = jnp.ones((*spectrum.shape[:2], 1, 1), bool)
        magnitude, phase, real, imaginary = magnitude_phase_real_imaginary(spectrum)

        parts = dict(config=self.config, axis_name=self.axis_name, dtype=self.dtype)
        inputs = {
            "both": {"magnitude_phase": [magnitude, phase], "complex": [real, imaginary]},
            "magnitude_phase": {"magnitude_phase": [magnitude, phase]},
            "magnitude": {"magnitude": [magnitude]},
            "complex": {"complex": [real, imaginary]},
        }[self.config.streams]
        streams = [
            SpectrumEncoder(**parts, name=f"encoder_{name}")(jnp.stack(parts_in, -1), mask, train)
            for name, parts_in in inputs.items()
        ]
        x = StreamFusion(self.config, self.dtype, name="fusion")(streams)
        if self.config.band_bias:
            shape = (x.shape[2], self.config.width)
            x = add_bias(x, self.param("band_bias", nn.initializers.zeros_init(), shape))
        mask = Delay(dense_delay(self.config))(mask)
        layer = SAFLayer
        if self.config.layer_kind == "transformer":
            layer, x = TransformerLayer, add_positions(x)
        layer = nn.remat(layer, static_argnums=(3,)) if self.remat else layer
        for i in range(self.config.layers):
            x = layer(**parts, name=f"layer_{i}")(x, mask, train)
            mask = Delay(layer_delay(self.config))(mask)

        late = Delay(network_delay(self.config))
        real, imaginary = jnp.moveaxis(late(jnp.stack([real, imaginary], -1)), -1, 0)
        estimate_real, estimate_imaginary = jnp.zeros_like(real), jnp.zeros_like(imaginary)
        bands = spectrum.shape[-1]
        if self.config.outputs != "bias":
            gain = nn.sigmoid(SpectrumDecoder(**parts, bands=bands, channels=1, name="mask_decoder")(x, mask, train))
            # magnitude * cos(phase) is the real part, magnitude * sin(phase) the imaginary part: no angle is needed.
            estimate_real, estimate_imaginary = gain[..., 0] * real, gain[..., 0] * imaginary
        if self.config.outputs != "mask":
            bias = SpectrumDecoder(**parts, bands=bands, channels=2, name="bias_decoder")(x, mask, train)
            estimate_real, estimate_imaginary = estimate_real + bias[..., 0], estimate_imaginary + bias[..., 1]
        mask = Delay(dense_delay(self.config))(mask)
        estimate = jax.lax.complex(estimate_real, estimate_imaginary)
        return estimate if mask is None else estimate * mask[..., 0]


@functools.cache
def variable_shapes(config: ModelConfig, bands: int) -> dict[str, Any]:
    """Shapes and types of the network's variables by collection, "past" among them, which is that of one signal.

    One trace for all who ask: tracing is a good part of what a command that enhances one short file takes. With
    transformer layers there is no "past".
    """
    kinds = DenyList("past") if config.layer_kind == "transformer" else True

    def variables(spectrum: jax.Array) -> dict[str, Any]:
        return SAFNet(config).apply({}, spectrum, rngs={"params": jax.random.key(0)}, mutable=kinds)[1]

    return jax.eval_shape(variables, jax.ShapeDtypeStruct((1, 1, bands), jnp.complex64))
