"""What the checkpoints of a training are judged by."""

import math
from collections.abc import Mapping

from saf_jax.config import Config
from saf_jax.errors import UserError
from saf_jax.metric_pool import METRICS, available_metrics


def check_best_metric(config: Config) -> str | None:
    """Whether checkpoints can be judged by what `train.best_metric` names.

    Returns:
      A line to tell the user where "auto" has to make do with the validation loss, else None.

    Raises:
      UserError: the metric that the config names is not scored, or needs a package that is missing.
    """
    name, scored = config.train.best_metric, available_metrics()
    if name in METRICS and not config.train.score_files:
        raise UserError(f"train.best_metric={name}: needs scored validation files: set train.score_files to 16 or so")
    if name in METRICS and name not in scored:
        raise UserError(f"train.best_metric={name}: needs the package pesq: pip install 'saf-jax[eval]'")
    if name == "auto" and config.train.score_files and "wb_pesq" not in scored:
        return "PESQ is not installed (pip install 'saf-jax[eval]'): the best checkpoints are chosen by valid_loss"
    return None


def resolved_metric(config: Config) -> str:
    """What `train.best_metric` comes to here: "auto" is WB-PESQ where files are scored and PESQ is installed."""
    if config.train.best_metric != "auto":
        return config.train.best_metric
    return "wb_pesq" if config.train.score_files and "wb_pesq" in available_metrics() else "valid_loss"


def rating(config: Config, valid_loss: float, scores: Mapping[str, float]) -> float:
    """How good a checkpoint is, the higher the better.

    Args:
      config: `train.best_metric` says by what; "auto" is WB-PESQ where it is scored, else the validation loss.
      valid_loss: of its validation.
      scores: means over the scored files at its validation, those of the noisy input under "noisy_..."; empty where
        none are scored.

    Returns:
      The metric, minus infinity where the network's output has no value, or the validation loss's negative.

    Raises:
      UserError: the metric has no value for the noisy recordings either.
    """
    name = config.train.best_metric
    if name == "auto":
        name = "wb_pesq" if "noisy_wb_pesq" in scores else "valid_loss"
    if name == "valid_loss":
        return -valid_loss
    if f"noisy_{name}" not in scores:
        raise UserError(
            f"train.best_metric={name}: no validation file has a value, as if none held speech: look at the files of "
            "data.valid_clean, or set train.best_metric=valid_loss"
        )
    return scores.get(name, -math.inf)
