"""Scoring files in a pool of processes that survives what a metric may do to its process.

The workers import numpy, scipy and the metrics, never jax. Each computes on one thread: the pool has the cores.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saf_jax import audio
from saf_jax.data.active_level import snr_db
from saf_jax.errors import UserError
from saf_jax.metrics import METRICS, SAMPLE_RATE_HZ, CompositeScale, Scores, score
from saf_jax.noise_kind import noise_kind
from saf_jax.results import FileResult
from saf_jax.worker_processes import one_thread_per_process, spawn_pool

LARGEST_TRIM = 0.01
"""Lengths may differ by this part of the clean recording's."""

_DIED = "its process died: no memory left, or PESQ failed, as it does on recordings of many minutes: cut them up"

# Part of every fingerprint: raise it when a change of the metrics changes their values.
_METRICS_VERSION = "1"


class Task(NamedTuple):
    """One file to score.

    Attributes:
      file: its name in the results.
      clean: the reference.
      noisy: the unprocessed input.
      enhanced: what is judged; None if there is no such file.
      enhanced_name: what `enhanced` is called where it is missing, for the message.
      composite_scale: see `saf_jax.metrics.score`.
      fingerprint: see `FileResult`.
    """

    file: str
    clean: Path
    noisy: Path
    enhanced: Path | None
    enhanced_name: str
    composite_scale: CompositeScale
    fingerprint: str


def fingerprint(clean: Path, noisy: Path, enhanced: Path | str | None, composite_scale: str) -> str:
    """Hash of what the scores depend on: sizes and times of the files (or the weights' hash), and the settings."""
    parts = [_METRICS_VERSION, composite_scale]
    for item in (clean, noisy, enhanced):
        if isinstance(item, Path):
            # What cannot be looked at here fails with its reason when it is read.
            with contextlib.suppress(OSError):
                status = item.stat()
                parts.append(f"{status.st_size} {status.st_mtime_ns}")
        else:
            parts.append(str(item))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def score_task(task: Task) -> FileResult:
    """Reads and scores one file; whatever is wrong with it ends in `failures`."""
    try:
        return _score(task)
    except UserError as error:
        return failed_result(task, str(error))
    except MemoryError:
        return failed_result(task, f"{task.enhanced}: not enough memory to score it: use fewer --jobs")
    except Exception as error:  # an unforeseen fault costs one file, not the whole evaluation
        return failed_result(task, f"{task.enhanced}: {type(error).__name__}: {error}")


def failed_result(task: Task, reason: str) -> FileResult:
    """The result of a file that could not be scored at all."""
    return FileResult(task.file, {}, failures={"file": " ".join(reason.splitlines())}, fingerprint=task.fingerprint)


def _score(task: Task) -> FileResult:
    if task.enhanced is None:
        raise UserError(f"{task.enhanced_name}: no such enhanced file")
    clean = audio.read_mono(task.clean, SAMPLE_RATE_HZ)
    noisy = audio.read_mono(task.noisy, SAMPLE_RATE_HZ)
    enhanced = audio.read_mono(task.enhanced, SAMPLE_RATE_HZ)
    if not clean.any():
        raise UserError(f"{task.clean}: the clean recording is digital silence: there is nothing to compare with")
    seconds = len(clean) / SAMPLE_RATE_HZ
    (clean, noisy, enhanced), trimmed = trim((task.clean, task.noisy, task.enhanced), (clean, noisy, enhanced))
    start = time.perf_counter()
    scores = score(clean, enhanced, composite_scale=task.composite_scale)
    # The unprocessed input given as "enhanced" is the usual check of a set-up: no need to score it twice.
    noisy_scores = (
        scores if np.array_equal(noisy, enhanced) else score(clean, noisy, composite_scale=task.composite_scale)
    )
    elapsed = time.perf_counter() - start
    values, failures = {}, {}
    for prefix, of in (("", scores), ("noisy_", noisy_scores)):
        values |= {prefix + name: value for name, value in _finite_values(of).items()}
        failures |= {prefix + name: reason for name, reason in of.failures.items()}
    noise = noisy.astype(np.float64) - clean
    input_snr_db = snr_db(clean, noise, SAMPLE_RATE_HZ)
    return FileResult(
        file=task.file,
        values=values,
        input_snr_db=round(input_snr_db, 3) if math.isfinite(input_snr_db) else None,
        noise_kind=noise_kind(noise, SAMPLE_RATE_HZ),
        seconds=round(seconds, 3),
        trimmed_samples=trimmed,
        failures=failures,
        metric_seconds=round(elapsed, 4),
        fingerprint=task.fingerprint,
    )


def _finite_values(scores: Scores) -> dict[str, float]:
    # Rounded here, so that results read back from the table are the ones that were computed.
    values = {name: getattr(scores, name) for name in METRICS}
    return {name: round(value, 6) for name, value in values.items() if math.isfinite(value)}


def trim(paths: Sequence[Path], signals: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """Cuts signals [N] to the shortest of them; the first is the clean one.

    Returns:
      The signals, and how many samples the longest lost.

    Raises:
      UserError: a length differs from the clean one by more than 1 %.
    """
    lengths = [len(samples) for samples in signals]
    for path, length in zip(paths[1:], lengths[1:], strict=True):
        if abs(length - lengths[0]) > LARGEST_TRIM * lengths[0]:
            raise UserError(
                f"{path}: {length} samples at 16 kHz where the clean recording has {lengths[0]}: "
                "more than 1 % apart: make the files of one length"
            )
    shortest = min(lengths)
    return [samples[:shortest] for samples in signals], max(lengths) - shortest


def score_all(tasks: Sequence[Task], jobs: int) -> Iterator[FileResult]:
    """Scores files in `jobs` processes; yields results as they come.

    A file whose process dies (PESQ is native code with fixed buffers) costs that file alone.
    """
    waiting = list(tasks)
    while waiting:
        lost = yield from _pool_pass(waiting, jobs)
        # The pool works first in, first out: whatever killed it was among the first without a result.
        suspects, waiting = lost[: 2 * jobs], lost[2 * jobs :]
        for task in suspects:
            if (yield from _pool_pass([task], 1)):
                yield failed_result(task, f"{task.enhanced}: {_DIED}")


def _pool_pass(tasks: Sequence[Task], jobs: int) -> Generator[FileResult, None, list[Task]]:
    """Yields results until all are there or a process dies; returns the tasks without one, in order."""
    done = set()
    with one_thread_per_process():
        # The metrics import pesq at its first use otherwise, and then it is part of the first file's time.
        pool = spawn_pool(min(jobs, len(tasks)), preload=("pesq",))
        try:
            futures = {pool.submit(score_task, task): number for number, task in enumerate(tasks)}
            for future in as_completed(futures):
                result = future.result()
                done.add(futures[future])
                yield result
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(wait=len(done) == len(tasks), cancel_futures=True)
    return [task for number, task in enumerate(tasks) if number not in done]
