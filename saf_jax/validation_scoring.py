"""Validation with the field's metrics: a fixed subset of the validation pairs, scored in processes beside the training.

The network enhances the subset on the device, which takes a moment; the metrics, which take longer, are computed by a
`MetricPool` while the training goes on. The scores take effect at a fixed later step and are waited for when they are
late: so a run's course does not depend on how fast its processes were.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from saf_jax import audio, parallel
from saf_jax.best_metric import rating
from saf_jax.companions import Companion
from saf_jax.data import pipeline
from saf_jax.data.folders import before_last_part
from saf_jax.data.pipeline import ValidationPair
from saf_jax.enhancement import Enhancer
from saf_jax.files import write_text
from saf_jax.metric_pool import METRICS, MetricPool, Pair, Pending, available_metrics
from saf_jax.metrics import SAMPLE_RATE_HZ
from saf_jax.observers import ListeningFile
from saf_jax.run_log import LISTEN_FOLDER, LISTEN_INDEX
from saf_jax.training_run import Run
from saf_jax.training_step import TrainState

_LISTEN_FILES = 3
# PESQ's buffers end at some minutes, and a file of a long recording must not weigh more than the rest together.
_LONGEST_SECONDS = 20.0
# Its multiples fill the unit interval evenly, however many there are.
_GOLDEN = (5**0.5 - 1) / 2


def choose_pairs(pairs: Sequence[ValidationPair], count: int) -> list[ValidationPair]:
    """A fixed subset, spread over the speakers and over the signal-to-noise ratios.

    The speaker, where the pair names none, is what stands before the last "_" or "-" of its name, as in "p226_001".

    Args:
      pairs: all validation pairs.
      count: how many to take; all where there are no more.

    Returns:
      The pairs by falling signal-to-noise ratio.
    """
    by_speaker: dict[str, list[ValidationPair]] = {}
    for pair in sorted(pairs, key=_snr_and_name):
        by_speaker.setdefault(pair.speaker or before_last_part(pair.name), []).append(pair)
    groups = [by_speaker[name] for name in sorted(by_speaker)]
    if count < len(groups):
        groups = [groups[(2 * i + 1) * len(groups) // (2 * count)] for i in range(count)]
    shares = [0] * len(groups)
    for _ in range(min(count, len(pairs))):
        # The group with the smallest share so far that has files left.
        share, place = min((share, i) for i, share in enumerate(shares) if share < len(groups[i]))
        shares[place] = share + 1
    chosen = []
    for number, (group, share) in enumerate(zip(groups, shares)):
        # One rank in each of equal parts of a group, at another place in each group: where speakers have one file
        # each, not all of them have the middle ratio.
        place = (0.5 + number * _GOLDEN) % 1
        chosen += [group[int((i + place) * len(group) / share)] for i in range(share)]
    return sorted(chosen, key=_snr_and_name, reverse=True)


def _snr_and_name(pair: ValidationPair) -> tuple[float, str]:
    speech = float(np.sum(np.square(pair.clean, dtype=np.float64)))
    noise = float(np.sum(np.square(pair.noisy.astype(np.float64) - pair.clean)))
    return speech / max(noise, 1e-20), pair.name


def mean_scores(
    names: Sequence[str], enhanced: list[dict[str, float]], noisy: list[dict[str, float]]
) -> dict[str, float]:
    """Means over the files that have a value: by name, and with "noisy_" before it for the unprocessed input."""
    means = {}
    for prefix, files in (("", enhanced), ("noisy_", noisy)):
        for name in names:
            values = [file[name] for file in files if name in file]
            if values:
                means[prefix + name] = round(float(np.mean(values)), 6)
    return means


@dataclasses.dataclass
class _Validation:
    """A validation whose scores are under way, or are there (`scores`)."""

    step: int
    due: int
    valid_loss: float
    pending: Pending | None = None
    scores: dict[str, float] | None = None


class ValidationScores(Companion):
    """Scores the fixed subset at each validation; the checkpoints are rated by them where the config wants it.

    Only the main process enhances and scores; all get the result.

    Args:
      run: `train.score_files` of its validation pairs are scored.
    """

    name = "scores"
    rates = True

    def __init__(self, run: Run):
        self._run = run
        self._folder = run.workdir / LISTEN_FOLDER
        self._rate_hz = run.config.stft.sample_rate_hz
        self._names = available_metrics()
        self._validations: list[_Validation] = []
        self._pool = None
        if not parallel.is_main_process():
            return
        longest = round(_LONGEST_SECONDS * self._rate_hz)
        self._pairs = [
            pair._replace(clean=pair.clean[:longest], noisy=pair.noisy[:longest])
            for pair in choose_pairs(pipeline.validation_pairs(run.config), run.config.train.score_files)
        ]
        self._pool = MetricPool()
        self._clean = [self._at_metrics_rate(pair.clean) for pair in self._pairs]
        noisy = [self._at_metrics_rate(pair.noisy) for pair in self._pairs]
        self._noisy = self._pool.submit(self._names, [Pair(*sides) for sides in zip(self._clean, noisy)])
        last = len(self._pairs) - 1
        self._listen = sorted({last * i // (_LISTEN_FILES - 1) for i in range(_LISTEN_FILES)})

    def after_validation(self, step: int, state: TrainState) -> None:
        self._submit(
            _Validation(step, step + self._run.config.train.score_delay_steps, self._run.host.valid_loss), state
        )

    def take_results(self, run: Run, step: int) -> None:
        while self._validations and self._validations[0].due <= step:
            validation = self._validations.pop(0)
            scores = self._scores(validation)
            run.log("scores", step=validation.step, **scores)
            run.rate(validation.step, rating(run.config, validation.valid_loss, scores))

    def finish(self, run: Run) -> None:
        self.take_results(run, max((validation.due for validation in self._validations), default=0))

    def get_state(self, step: int) -> list[dict[str, Any]]:
        # The scores of this very step can be computed again from the checkpoint; those of earlier ones cannot.
        return [
            {
                "step": validation.step,
                "due": validation.due,
                "valid_loss": validation.valid_loss,
                "scores": None if validation.step == step else self._scores(validation),
            }
            for validation in self._validations
        ]

    def set_state(self, saved: list[dict[str, Any]], step: int, state: TrainState) -> None:
        self._validations = []
        for item in saved:
            validation = _Validation(**item)
            if validation.scores is None:
                self._submit(validation, state)
            else:
                self._validations.append(validation)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _submit(self, validation: _Validation, state: TrainState) -> None:
        self._validations.append(validation)
        if self._pool is None:
            return
        # The copies are explicit: the training loop forbids others.
        variables = jax.device_get(state.best_variables)
        with jax.transfer_guard("allow"):
            enhanced = Enhancer(self._run.config, variables).many([pair.noisy for pair in self._pairs], self._rate_hz)
        pairs = [Pair(clean, self._at_metrics_rate(signal)) for clean, signal in zip(self._clean, enhanced)]
        validation.pending = self._pool.submit(self._names, pairs)
        files = [
            ListeningFile(pair.name, {"noisy": pair.noisy, "enhanced": np.nan_to_num(signal), "clean": pair.clean})
            for pair, signal in ((self._pairs[place], enhanced[place]) for place in self._listen)
        ]
        self._keep(validation.step, files)
        for observer in self._run.observers:
            observer.hear(validation.step, files)

    def _scores(self, validation: _Validation) -> dict[str, float]:
        """Waits for the scores; called in all processes, which all get them."""
        if validation.scores is None:
            means = {}
            if validation.pending is not None:
                means = mean_scores(self._names, validation.pending.result(), self._noisy.result())
            # All metrics, whatever is installed where this process runs: the arrays must be of one size.
            keys = [prefix + name for prefix in ("", "noisy_") for name in METRICS]
            values = parallel.from_main_process(np.array([means.get(key, np.nan) for key in keys]))
            validation.scores = {key: float(value) for key, value in zip(keys, values) if np.isfinite(value)}
        return validation.scores

    def _at_metrics_rate(self, samples: np.ndarray) -> np.ndarray:
        same = self._rate_hz == SAMPLE_RATE_HZ
        return samples if same else audio.resample(samples, self._rate_hz, SAMPLE_RATE_HZ)

    def _keep(self, step: int, files: list[ListeningFile]) -> None:
        for number, file in enumerate(files, 1):
            for side, samples in file.sides.items():
                path = self._folder / str(number) / f"{side}.flac"
                if side == "enhanced" or not path.exists():
                    audio.write(path, audio.Audio(samples, self._rate_hz, format="FLAC"))
        index = {"step": step, "names": [file.name for file in files]}
        write_text(self._folder / LISTEN_INDEX, json.dumps(index) + "\n")
