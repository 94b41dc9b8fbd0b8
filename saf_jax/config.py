"""Settings: frozen dataclasses, filled from YAML and from `key=value` overrides.

The defaults are those of the paper's network and training (`configs/paper.yaml`); a config file states only what it
changes. A value of None in a docstring's units column means "not set".
"""

import argparse
import contextlib
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from saf_jax.errors import UserError

# Twice the upper edge of STOI's highest third-octave.
_LEAST_STOI_HZ = 8600


@dataclasses.dataclass(frozen=True)
class STFTConfig:
    """Short-time Fourier transform and power compression.

    Attributes:
      sample_rate_hz: rate that the network works at.
      window_samples: length of the Hann window; also the length of the transform.
      hop_samples: samples between frames; divides `window_samples`, at most half of it.
      compression: exponent applied to magnitudes (DB-AIAT, arXiv 2110.06467, section 2.1); 1 leaves them.
    """

    sample_rate_hz: int = 16000
    window_samples: int = 320
    hop_samples: int = 160
    compression: float = 0.5

    @property
    def bins(self) -> int:
        """Number of frequency bins F."""
        return self.window_samples // 2 + 1

    def frames(self, samples: int) -> int:
        """Number of frames T for a signal of that length: all whose centred window touches it."""
        return -(-(samples + self.window_samples // 2) // self.hop_samples)

    def check(self) -> None:
        if self.sample_rate_hz <= 0:
            raise UserError(f"stft.sample_rate_hz={self.sample_rate_hz}: must be positive")
        if self.hop_samples < 1 or self.window_samples % self.hop_samples or self.hop_samples * 2 > self.window_samples:
            raise UserError(
                f"stft.hop_samples={self.hop_samples}: must divide stft.window_samples={self.window_samples} "
                "at least twice"
            )
        if self.window_samples % 2:
            raise UserError(f"stft.window_samples={self.window_samples}: must be even")
        if not 0 < self.compression <= 1:
            raise UserError(f"stft.compression={self.compression}: must lie in (0, 1]")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network. Each experiment that the paper leaves open is a field here.

    Attributes:
      streams: inputs of the Spectrum Encoders. "both" is the paper's pair (magnitude and phase; real and imaginary);
        the others keep one encoder.
      width: channels C between all modules.
      layers: number of layers between encoders and decoders.
      layer_kind: "saf" is the paper's Spectrum Attention Fusion layer; "transformer" is the baseline that it replaces,
        self-attention over frequency and over the whole signal in time, to which `attention_kernel`, `local_window`
        and `tcn_*` do not apply.
      heads: heads of the values and of all dot-product attention; divides `width`.
      feedforward_factor: inner width of a transformer layer's feed-forward part over `width`.
      attention_kernel: side of the large convolution of the SAF module, odd, 3 to 21; 0 leaves the module out.
      local_window: neighbouring bands that local attention sees, 1, 3, 5 or 7; 0 leaves it out.
      norm: "layer" (over C), "group" (over F and groups of C), "instance" (over F), each within one frame; "batch"
        (over batch, time and F in training, stored averages at inference).
      norm_groups: groups of the norm "group"; divides `width`.
      fusion: how the encoders' outputs become one: "concatenate" (then 1x1), "add", or "gate" (the complex stream
        gates the values of the magnitude stream by a Hadamard product).
      band_bias: a learnt value for each band and channel is added to what the layers take: convolutions treat all bands
        alike, and so learn which one they work on.
      tcn_dilations: dilation in frames of each temporal block of a layer; empty leaves the TCN out.
      tcn_kernel: taps in time of a temporal block, odd.
      dense_dilations: dilation in frames of each convolution of the encoders' and decoders' dense blocks.
      outputs: "both", "mask" or "bias".
      frequency_stride: 2 or 4; cost falls with it at equal parameters.
      fold_first: encoders and decoders work at the lower resolution in frequency too: much cheaper for small networks,
        whose cost lies in passing over the full resolution.
      causal: no output frame depends on a later input frame.
    """

    streams: Literal["both", "magnitude_phase", "magnitude", "complex"] = "both"
    width: int = 64
    layers: int = 6
    layer_kind: Literal["saf", "transformer"] = "saf"
    heads: int = 4
    feedforward_factor: int = 4
    attention_kernel: int = 11
    local_window: int = 3
    norm: Literal["layer", "batch", "group", "instance"] = "layer"
    norm_groups: int = 4
    fusion: Literal["concatenate", "add", "gate"] = "concatenate"
    band_bias: bool = False
    tcn_dilations: tuple[int, ...] = (1, 2, 4, 8)
    tcn_kernel: int = 3
    dense_dilations: tuple[int, ...] = (1, 2, 4)
    outputs: Literal["both", "mask", "bias"] = "both"
    frequency_stride: Literal[2, 4] = 2
    fold_first: bool = False
    causal: bool = False

    def check(self) -> None:
        for name in ("width", "heads", "feedforward_factor", "norm_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)}: must be at least 1")
        if self.layers < 0:
            raise UserError(f"model.layers={self.layers}: must be at least 0")
        attends = self.layer_kind == "transformer" or self.local_window
        for name, used in (("heads", attends), ("norm_groups", self.norm == "group")):
            if used and self.width % getattr(self, name):
                raise UserError(f"model.{name}={getattr(self, name)}: must divide model.width={self.width}")
        if self.attention_kernel and (self.attention_kernel % 2 == 0 or not 3 <= self.attention_kernel <= 21):
            raise UserError(f"model.attention_kernel={self.attention_kernel}: must be odd from 3 to 21, or 0 for off")
        if self.local_window not in (0, 1, 3, 5, 7):
            raise UserError(f"model.local_window={self.local_window}: must be 1, 3, 5 or 7 bands, or 0 for off")
        if self.tcn_kernel < 1 or self.tcn_kernel % 2 == 0:
            raise UserError(f"model.tcn_kernel={self.tcn_kernel}: must be odd")
        for name in ("tcn_dilations", "dense_dilations"):
            if any(dilation < 1 for dilation in getattr(self, name)):
                raise UserError(f"model.{name}={list(getattr(self, name))}: dilations must be at least 1")
        if self.causal and self.layer_kind == "transformer":
            raise UserError(
                "model.causal=true: model.layer_kind=transformer attends to the whole signal: set model.causal=false, "
                "or model.layer_kind=saf"
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where recordings lie. Folders hold wav, flac or other audio, read at any rate and as one channel.

    Training takes ready pairs from `train_clean` and `train_noisy`; where `train_noisy` is empty, it mixes the speech
    of `train_clean` with `train_noise`, anew in each epoch, as the section `mixing` says. For mixing, a manifest that
    `saf-jax prepare folder` wrote can stand for a folder.

    Attributes:
      train_clean: folders of clean training speech; one named twice is heard twice as often.
      train_noisy: folders with the noisy versions, file for file of the same names, in the order of `train_clean`.
      train_noise: folders of noise for mixing.
      train_noise_weights: how often each of these folders is drawn, relative to the others; empty goes by seconds.
      train_rir: folders of room impulse responses for mixing; may be empty.
      valid_clean: folders of clean speech that checkpoints are chosen on.
      valid_noisy: their noisy versions.
      crop_seconds: length of a training example.
      workers: processes that prepare examples beside the training; 0 prepares them in the training process.
      cache_gb: memory that decoded recordings may take; what needs more is decoded again for every example.
      cache_folder: folder where decoded recordings are kept from run to run as memory-mapped files, whatever their
        size; empty keeps them in memory only.
    """

    train_clean: tuple[str, ...] = ()
    train_noisy: tuple[str, ...] = ()
    train_noise: tuple[str, ...] = ()
    train_noise_weights: tuple[float, ...] = ()
    train_rir: tuple[str, ...] = ()
    valid_clean: tuple[str, ...] = ()
    valid_noisy: tuple[str, ...] = ()
    crop_seconds: float = 3.0
    workers: int = 0
    cache_gb: float = 8.0
    cache_folder: str = ""

    def check(self) -> None:
        if self.crop_seconds <= 0:
            raise UserError(f"data.crop_seconds={self.crop_seconds}: must be positive")
        if self.workers < 0:
            raise UserError(f"data.workers={self.workers}: must not be negative")
        if self.cache_gb < 0:
            raise UserError(f"data.cache_gb={self.cache_gb}: must not be negative")
        weights = self.train_noise_weights
        if weights and (len(weights) != len(self.train_noise) or min(weights) < 0 or sum(weights) <= 0):
            raise UserError(
                f"data.train_noise_weights={list(weights)}: name one for each of the {len(self.train_noise)} folders "
                "of data.train_noise, none negative, at least one above 0"
            )


@dataclasses.dataclass(frozen=True)
class MixingConfig:
    """How speech and noise are mixed on the fly (`saf_jax.data.mixing`). Names without a unit are probabilities.

    The signal-to-noise ratio is the P.56 active level of the dry (or early reverberant) speech minus the RMS level of
    the noise over the example, as in Voice Bank + DEMAND.

    Attributes:
      snr_db: bounds of the ratio, drawn evenly between them.
      near_clean: examples whose ratio is drawn from `near_clean_snr_db` instead.
      near_clean_snr_db: bounds of the ratio of such examples.
      speech_free: examples of noise alone, whose target is silence.
      more_noises: that another noise joins the ones drawn so far, up to `most_noises`.
      most_noises: largest number of noises at once.
      babble: that a noise is babble of 3 to 8 other recordings of the clean pool.
      generated: that a noise is a generated one (`saf_jax.data.noises`).
      impulses: that sparse clicks and knocks are added to the noise.
      noise_transform: that a recorded noise is changed: speed, direction of time, spectrum, gusts.
      intermittent: that a noise is there for a part of the example only.
      reverberation: that the speech is put into a room of `train_rir`.
      early_ms: the target keeps this much of the impulse response after the direct sound.
      noise_reverberation: that the noise of such an example is put into the same room.
      speed: that speech is played faster or slower, pitch included.
      speed_factor: bounds of the factor.
      equaliser: that the recording, noise and target alike, goes through a random smooth equaliser.
      equaliser_db: largest gain and loss of the equaliser.
      band_limit: that the recording, target alike, loses what lies above a random frequency.
      band_limit_hz: bounds of that frequency.
      clipping: that the noisy recording is clipped; the target is not.
      clipping_part: bounds of the part of the samples that lie beyond the clipping level.
      level: that the level of the recording, target alike, is drawn from `level_db`; else speech keeps its own.
      level_db: bounds of the RMS level of the target.
    """

    snr_db: tuple[float, ...] = (-5.0, 20.0)
    near_clean: float = 0.05
    near_clean_snr_db: tuple[float, ...] = (25.0, 45.0)
    speech_free: float = 0.03
    more_noises: float = 0.25
    most_noises: int = 3
    babble: float = 0.1
    generated: float = 0.15
    impulses: float = 0.05
    noise_transform: float = 0.5
    intermittent: float = 0.1
    reverberation: float = 0.2
    early_ms: float = 50.0
    noise_reverberation: float = 0.5
    speed: float = 0.3
    speed_factor: tuple[float, ...] = (0.88, 1.12)
    equaliser: float = 0.3
    equaliser_db: float = 9.0
    band_limit: float = 0.1
    band_limit_hz: tuple[float, ...] = (3000.0, 7500.0)
    clipping: float = 0.05
    clipping_part: tuple[float, ...] = (0.0005, 0.02)
    level: float = 1.0
    level_db: tuple[float, ...] = (-40.0, -18.0)

    def check(self) -> None:
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), f"mixing.{field.name}"
            if isinstance(value, tuple):
                if len(value) != 2 or value[0] > value[1]:
                    raise UserError(f"{name}={list(value)}: must be two numbers, the lower bound first")
            elif isinstance(value, float) and not name.endswith(("_db", "_ms")) and not 0 <= value <= 1:
                raise UserError(f"{name}={value}: is a probability: must lie in [0, 1]")
        if self.most_noises < 1:
            raise UserError(f"mixing.most_noises={self.most_noises}: must be at least 1")
        if self.babble + self.generated > 1:
            raise UserError("mixing.babble and mixing.generated: their sum must not exceed 1")
        if self.early_ms < 0 or self.equaliser_db < 0:
            raise UserError("mixing.early_ms and mixing.equaliser_db must not be negative")
        if not 0.25 <= self.speed_factor[0] <= self.speed_factor[1] <= 4:
            raise UserError(f"mixing.speed_factor={list(self.speed_factor)}: must lie in [0.25, 4]")
        if self.band_limit_hz[0] < 100:
            raise UserError(f"mixing.band_limit_hz={list(self.band_limit_hz)}: must be at least 100")
        if not 0 <= self.clipping_part[0] <= self.clipping_part[1] < 0.5:
            raise UserError(f"mixing.clipping_part={list(self.clipping_part)}: must lie in [0, 0.5)")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms (`saf_jax.losses`); 0 leaves a term out.

    Attributes:
      complex: mean squared error of the compressed real and imaginary parts (DB-AIAT, equation 9).
      magnitude: mean squared error of the compressed magnitudes.
      time: mean absolute error of the samples, at unit level of the noisy signal.
      consistency: mean squared difference between the estimate and the spectrum of the waveform made of it.
      multi_resolution: spectral convergence and log magnitudes at three window lengths.
      phase: anti-wrapped phase, group delay and instantaneous angular frequency, in radians (MP-SENet).
      si_sdr: negative scale-invariant signal-to-distortion ratio, in dB: give it a weight near 0.01.
      segmental: negative segmental SNR, in dB: give it a weight near 0.01.
      perceptual: points that PESQ takes away, by a differentiable relative of it: give it a weight near 0.05.
      wb_pesq: negative WB-PESQ, of the same relative: as `perceptual`, but counting mixtures most that can score well.
      intelligibility: 1 - STOI, made differentiable: give it a weight near 0.5.
      envelope: log-likelihood ratio, the distance of spectral envelopes in CSIG and COVL: give it a weight near 0.3.
      metric: the metric discriminator's verdict (MetricGAN), see the section `discriminator`: MP-SENet has 0.05.
    """

    complex: float = 0.5
    magnitude: float = 0.5
    time: float = 0.0
    consistency: float = 0.0
    multi_resolution: float = 0.0
    phase: float = 0.0
    si_sdr: float = 0.0
    segmental: float = 0.0
    perceptual: float = 0.0
    wb_pesq: float = 0.0
    intelligibility: float = 0.0
    envelope: float = 0.0
    metric: float = 0.0

    def check(self) -> None:
        for field in dataclasses.fields(self):
            if (weight := getattr(self, field.name)) < 0:
                raise UserError(f"loss.{field.name}={weight}: must not be negative")
        if not any(dataclasses.astuple(self)):
            raise UserError("loss: all weights are 0: give at least one term a weight")
        if not any(dataclasses.astuple(dataclasses.replace(self, metric=0.0))):
            raise UserError(
                "loss.metric: validation has no such term: give another one, such as loss.complex, a weight"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation. The paper's: Adam, 5e-4, beta1 0.95, beta2 0.999, 50 epochs.

    Attributes:
      batch_size: examples per step over all devices.
      accumulate: parts that each device takes its share of a batch in, one after another: memory falls with it, the
        result stays the same (but for the norm "batch", whose statistics are then those of a part).
      epochs: passes over the training set; ignored where `steps` is set.
      steps: number of steps, or 0 to go by `epochs`.
      minutes: the training ends after so many minutes at the latest, and a schedule "cosine" falls to 0 by then,
        whatever the machine's speed: for machines that are there for a time. The first step's compilation does not
        count. Of several processes the main one's clock counts, which all read every `log_every` steps. 0 goes by
        steps alone, which makes runs repeatable to the bit.
      optimizer: "adam", the paper's, or "muon": the maps between channels are moved by Muon, all else by Adam.
      learning_rate: step size at the start.
      beta1: Adam's decay of the first moment.
      beta2: Adam's decay of the second moment.
      weight_decay: AdamW's; 0 is plain Adam.
      gradient_clip: largest global norm of the gradient; 0 does not clip.
      explosion_factor: a step is left out when its gradient's norm exceeds the running mean so many times (after the
        first 100 steps); 0 leaves out only those that are not finite.
      schedule: "plateau" halves the learning rate when the validation loss has not fallen for `plateau_epochs`
        validations; "exponential" multiplies it by `epoch_decay` at each epoch; "cosine" falls to 0 over the whole
        training; "constant".
      plateau_epochs: patience of "plateau".
      epoch_decay: factor of "exponential".
      warmup_steps: steps over which the learning rate rises from 0.
      validate_every: steps between validations, or 0 for once an epoch.
      checkpoint_seconds: seconds between checkpoints besides those at validations.
      keep_best: checkpoints kept for their validation, besides the latest.
      log_every: steps between lines of the log; only there does the host wait for the devices.
      early_stop: the training ends after so many validations without improvement; 0 trains to the end.
      best_metric: what improvement and the best checkpoints go by: the mean over the scored validation files, or
        "valid_loss"; "auto" is "wb_pesq" where files are scored and PESQ is installed, else "valid_loss".
      score_files: validation files that are enhanced and scored with PESQ, STOI, SI-SDR and SSNR at each validation,
        chosen evenly over speakers and signal-to-noise ratios; 0 scores none.
      score_delay_steps: the scores of a validation take effect so many steps after it; they are computed meanwhile.
      tensorboard: the run's folder gets files for TensorBoard.
      precision: "float32" or "bfloat16" (compute only; parameters stay float32).
      remat: the activations inside each fusion layer are computed again on the way back instead of kept: less memory,
        about a third more time.
      average_decay: decay of the moving average of the weights, such as 0.999, which is then validated and used;
        0 uses the weights themselves.
      init_from: weights that the training starts from: a shipped name, a run or a weights file; empty starts anew.
        They may be those of the same network with fewer channels and layers, or, for a causal one, with a look ahead.
      freeze_norm: batch norm goes by the averages of the weights in `init_from`, as at inference, and leaves them as
        they are.
      seed: of initialisation and data order.
    """

    batch_size: int = 4
    accumulate: int = 1
    epochs: int = 50
    steps: int = 0
    minutes: float = 0.0
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 5e-4
    beta1: float = 0.95
    beta2: float = 0.999
    weight_decay: float = 0.0
    gradient_clip: float = 5.0
    explosion_factor: float = 100.0
    schedule: Literal["plateau", "exponential", "cosine", "constant"] = "plateau"
    plateau_epochs: int = 3
    epoch_decay: float = 0.99
    warmup_steps: int = 0
    validate_every: int = 0
    checkpoint_seconds: float = 300.0
    keep_best: int = 3
    log_every: int = 20
    early_stop: int = 0
    best_metric: Literal["auto", "valid_loss", "wb_pesq", "stoi_percent", "si_sdr_db", "ssnr_db"] = "auto"
    score_files: int = 24
    score_delay_steps: int = 50
    tensorboard: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    average_decay: float = 0.0
    init_from: str = ""
    freeze_norm: bool = False
    seed: int = 0

    def check(self) -> None:
        for name in ("batch_size", "accumulate", "plateau_epochs", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)}: must be at least 1")
        for name in (
            "seed",
            "weight_decay",
            "steps",
            "epochs",
            "validate_every",
            "warmup_steps",
            "keep_best",
            "early_stop",
            "score_files",
            "score_delay_steps",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name}={getattr(self, name)}: must not be negative")
        if self.seed >= 1 << 32:
            raise UserError(f"train.seed={self.seed}: must be below {1 << 32}")
        if not self.steps and not self.epochs:
            raise UserError("train.steps and train.epochs are both 0: set one of them")
        if self.minutes < 0:
            raise UserError(f"train.minutes={self.minutes}: must not be negative; 0 goes by steps")
        if self.learning_rate <= 0:
            raise UserError(f"train.learning_rate={self.learning_rate}: must be positive")
        if self.gradient_clip < 0:
            raise UserError(f"train.gradient_clip={self.gradient_clip}: must not be negative; 0 does not clip")
        if self.explosion_factor and self.explosion_factor <= 1:
            raise UserError(f"train.explosion_factor={self.explosion_factor}: must be above 1; 0 is off")
        if not 0 < self.epoch_decay <= 1:
            raise UserError(f"train.epoch_decay={self.epoch_decay}: must lie in (0, 1]")
        for name in ("beta1", "beta2", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)}: must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """A second network that learns to tell an estimate's WB-PESQ and judges the first; there while `loss.metric` > 0.

    Attributes:
      width: channels of its first layer.
      learning_rate: step size at the start; it falls as `train.learning_rate` does.
      label_delay_steps: it learns from a batch so many steps after it, whose PESQ is computed meanwhile, at least 2.
      label_processes: processes that compute PESQ; 0 takes a quarter of the cores.
    """

    width: int = 16
    learning_rate: float = 1e-3
    label_delay_steps: int = 4
    label_processes: int = 0

    def check(self) -> None:
        for name, least in (("width", 1), ("label_delay_steps", 2), ("label_processes", 0)):
            if getattr(self, name) < least:
                raise UserError(f"discriminator.{name}={getattr(self, name)}: must be at least {least}")
        if self.learning_rate <= 0:
            raise UserError(f"discriminator.learning_rate={self.learning_rate}: must be positive")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    stft: STFTConfig = STFTConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    mixing: MixingConfig = MixingConfig()
    loss: LossConfig = LossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    train: TrainConfig = TrainConfig()

    def check(self) -> None:
        """Raises `UserError` for values that do not fit, naming the key."""
        for section in dataclasses.fields(self):
            getattr(self, section.name).check()
        if self.data.crop_seconds * self.stft.sample_rate_hz < self.stft.window_samples:
            raise UserError(
                f"data.crop_seconds={self.data.crop_seconds}: must be at least a window, "
                f"{self.stft.window_samples / self.stft.sample_rate_hz:g} s"
            )
        if self.loss.intelligibility and self.stft.sample_rate_hz < _LEAST_STOI_HZ:
            raise UserError(
                f"loss.intelligibility: STOI's bands reach to 4.3 kHz: stft.sample_rate_hz={self.stft.sample_rate_hz} "
                f"must be at least {_LEAST_STOI_HZ}"
            )
        if self.train.freeze_norm and (self.model.norm != "batch" or not self.train.init_from):
            raise UserError('train.freeze_norm: goes with model.norm="batch" and train.init_from alone')


def config_folder() -> Path:
    """The folder of the configs that come with the package: beside it in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load_config(source: str | os.PathLike, overrides: Iterable[str] = ()) -> Config:
    """Reads a config file.

    Args:
      source: path of a YAML file, or the name of a config that comes with the package, such as "paper".
      overrides: settings that win over the file's, each "section.key=value" with the value in YAML.

    Returns:
      The checked config.

    Raises:
      UserError: no such file, no YAML, an unknown key (the nearest one is named), a wrong type, or a value that does
        not fit.

    Example:
      >>> load_config("paper", overrides=["model.layers=2"]).model.layers
      2
    """
    from saf_jax.yaml_files import read_yaml

    path = Path(source)
    if not path.is_file():
        shipped = config_folder() / f"{source}.yaml"
        if not shipped.exists():
            # Not those in folders: what lies there are tables of runs (`saf_jax.sweep_spec`).
            names = ", ".join(sorted(path.stem for path in config_folder().glob("*.yaml")))
            problem = "is a folder, no config file" if path.is_dir() else "no such config file"
            raise UserError(f"{source}: {problem}, nor is it one that comes with the package ({names})")
        path = shipped
    config = config_from_dict(read_yaml(path), where=str(path))
    return override(config, overrides)


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    """Gives a command the flag `--set`; `args.set` then is the list for `load_config`'s `overrides`."""
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="settings that win over the config's"
    )


def override(config: Config, overrides: Iterable[str]) -> Config:
    """Applies "section.key=value" settings to a config and checks the result."""
    import yaml

    if isinstance(overrides, str):
        raise UserError(f"{overrides}: overrides are a list of settings: put it into one")
    tree: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise UserError(f"--set {item}: write it as section.key=value, such as train.batch_size=8")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {item}: the value is not YAML: {' '.join(str(error).split())}") from error
        tree.setdefault(section, {})[name] = value
    config = config_from_dict(tree, where="--set", base=config)
    config.check()
    return config


def fill_dataclass(base: Any, tree: Any, where: str) -> Any:
    """Fills any frozen dataclass from nested mappings, with types checked.

    Args:
      base: an instance; keys that are not named keep its values.
      tree: what YAML gave.
      where: the file, for messages.

    Raises:
      UserError: an unknown key (the nearest one is named), or a wrong type.
    """
    return _fill(base, tree, where, "")


def config_from_dict(tree: Any, *, where: str = "config", base: Config | None = None) -> Config:
    """Fills the dataclasses from nested mappings; keys that are not named keep the value of `base` or the default."""
    return _fill(base if base is not None else Config(), tree, where, "")


def config_to_dict(config: Config) -> dict[str, Any]:
    """The whole config as nested dicts of plain YAML and JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def config_differences(a: Config, b: Config) -> list[str]:
    """The keys in which two configs differ, each as "section.key (a's value, b's value)"."""
    left, right = config_to_dict(a), config_to_dict(b)
    return [
        f"{section}.{key} ({left[section][key]} there, {right[section][key]} now)"
        for section in left
        for key in left[section]
        if left[section][key] != right[section][key]
    ]


def _fill(base: Any, tree: Any, where: str, prefix: str) -> Any:
    """Replaces the fields of the dataclass `base` that the mapping `tree` names, with types checked."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{where}: {prefix or 'the file'} must hold 'key: value' lines, not {tree!r}")
    hints = typing.get_type_hints(type(base))
    names = [field.name for field in dataclasses.fields(base)]
    changes = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.4)
            hint = f"did you mean {f'{prefix}.' if prefix else ''}{near[0]}?" if near else f"known: {', '.join(names)}"
            raise UserError(f"{where}: unknown key {name}: {hint}")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            changes[key] = _fill(current, {} if value is None else value, where, name)
        else:
            changes[key] = _convert(value, hints[key], where, name)
    return dataclasses.replace(base, **changes)


def _convert(value: Any, hint: Any, where: str, name: str) -> Any:
    """Checks a YAML value against a field's type; an int passes as float, a lone item as a tuple, nothing as ""."""
    if dataclasses.is_dataclass(hint):
        return _fill(hint(), value, where, name)
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        # True == 1 in Python: compare types too.
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise UserError(f"{where}: {name}={value!r}: must be one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [] if value is None else [value]
        several = dataclasses.is_dataclass(choices[0])
        return tuple(
            _convert(item, choices[0], where, f"{name}.{number}" if several else name)
            for number, item in enumerate(items, 1)
        )
    if origin is types.UnionType:
        if value is None and type(None) in choices:
            return None
        return _convert(value, next(choice for choice in choices if choice is not type(None)), where, name)
    if hint is str and value is None:
        # "key:" and "--set key=" take an inherited name away, as they empty a list.
        return ""
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 5e-4 as text, since it has no point.
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where}: {name}={value!r}: must be {_TYPE_NAMES.get(hint, hint.__name__)}")
    if hint is float and not (math.isfinite(value) or (value == math.inf and name in _MAY_BE_INFINITE)):
        raise UserError(f"{where}: {name}={value}: must be a finite number")
    return value


_MAY_BE_INFINITE = ("data.cache_gb", "train.checkpoint_seconds")
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "'key: value' lines"}
