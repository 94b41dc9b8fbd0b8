"""Enhancing files: two passes over each, in pieces, so that memory does not grow with the length.

The first pass checks the whole file, measures its level and finds channels that are silent or alike; the second
enhances and writes. Short recordings are gathered and enhanced together. A network with transformer layers needs each
recording whole: memory grows with its length, and what is too long is refused (`Enhancer.check_seconds`).
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saf_jax import parallel
from saf_jax.audio import containers_of
from saf_jax.audio_blocks import AudioFormat, Recording, output_format, read_format, read_pieces, writing
from saf_jax.enhance_jobs import Job, back_up
from saf_jax.errors import UserError
from saf_jax.level import gated_level
from saf_jax.recomposition import Fifo, Recomposer, Resampler, Treatment
from saf_jax.tags import copy_tags, read_texts

if TYPE_CHECKING:
    from saf_jax.enhancement import Enhancer

# Recordings up to this length, all channels together, are enhanced in company; longer ones fill blocks of their own.
SHORT_SECONDS = 20.0
# So much is gathered: enough for every device's batch, little enough to be held in memory.
GROUP_SECONDS = 120.0

Progress = Callable[[float], None]
"""Is called with the seconds of a recording that were done since the last call."""


class Survey(NamedTuple):
    """What the first pass over a recording finds.

    Attributes:
      format: how it is stored.
      samples: number of samples of each channel.
      level: that all channels are divided by, at the network's rate.
      columns: for each channel the place of its samples among the distinct ones, None if it is silent.
    """

    format: AudioFormat
    samples: int
    level: float
    columns: tuple[int | None, ...]

    @property
    def seconds(self) -> float:
        return self.samples / self.format.sample_rate_hz

    @property
    def work_seconds(self) -> float:
        """Of all channels that the network must work on."""
        return self.seconds * len(self.distinct)

    @property
    def distinct(self) -> list[int]:
        """The first channel of each kind; the others are silent or hold the same samples."""
        return [self.columns.index(place) for place in range(len(set(self.columns) - {None}))]


class Outcome(NamedTuple):
    """What became of a job: `error` is set if it failed, and then nothing was written."""

    job: Job
    seconds: float
    notes: tuple[str, ...] = ()
    error: UserError | None = None


class _Prepared(NamedTuple):
    """A short recording, ready for the network."""

    job: Job
    survey: Survey
    recomposer: Recomposer
    inputs: np.ndarray


def survey(recording: Recording, enhancer: "Enhancer") -> Survey:
    """The first pass.

    Raises:
      UserError: the file cannot be read to its end, or holds samples that are no numbers.
    """
    given = read_format(recording)
    stft = enhancer.config.stft
    down = Resampler(given.sample_rate_hz, stft.sample_rate_hz, given.channels)
    digests = [hashlib.blake2b(digest_size=16) for _ in range(given.channels)]
    sounding = np.zeros(given.channels, bool)
    rest, energies, samples = Fifo(given.channels), [], 0

    def measure(inner: np.ndarray, hops: int) -> None:
        # Over all channels: the level is shared, so that their balance stays.
        powers = np.square(inner.reshape(hops, stft.hop_samples, given.channels), dtype=np.float64)
        energies.append(powers.mean(axis=1).sum(axis=1))

    for piece in read_pieces(recording):
        samples += len(piece)
        # -0.0 and 0.0 are the same silence.
        sounding |= piece.any(axis=0)
        for digest, channel in zip(digests, piece.T):
            digest.update(np.ascontiguousarray(channel))
        rest.put(down.push(piece))
        hops = rest.length // stft.hop_samples
        measure(rest.take(hops * stft.hop_samples), hops)
    rest.put(down.push(np.zeros((0, given.channels), np.float32), last=True))
    hops = -(-rest.length // stft.hop_samples)
    rest.put(np.zeros((-rest.length % stft.hop_samples, given.channels), np.float32))
    measure(rest.take(rest.length), hops)

    places: dict[bytes, int] = {}
    columns = tuple(
        places.setdefault(digest.digest(), len(places)) if sound else None for digest, sound in zip(digests, sounding)
    )
    joined = np.concatenate(energies) / max(1, int(sounding.sum()))
    return Survey(given, samples, float(gated_level(joined)) if len(joined) else 0.0, columns)


def enhance_files(
    enhancer: "Enhancer", jobs: Iterable[Job], treatment: Treatment, progress: Progress = lambda seconds: None
) -> Iterator[Outcome]:
    """Enhances files; a bad one leaves the others alone.

    Args:
      enhancer: the network.
      jobs: what to read and where to write.
      treatment: mix, limit and high band.
      progress: told what is done while it is.

    Yields:
      What became of each job, about in the order given: gathered ones come when their group is done.
    """
    # On a single CPU company brings nothing: every file is written as soon as it is done.
    alone = parallel.runs_on_cpu() and parallel.local_device_count() == 1
    group: list[_Prepared] = []
    for job in jobs:
        try:
            # Before the work: the ending of the recording's own name may be one that can only be read.
            containers_of(job.target)
            found = survey(job.recording, enhancer)
            if not found.distinct:
                yield _copy_silence(job, found, progress)
                continue
            _check_length(job, found, enhancer)
            if _is_short(found, enhancer):
                group.append(_prepare(enhancer, job, found, treatment))
                if alone or sum(part.survey.work_seconds for part in group) >= GROUP_SECONDS:
                    yield from _enhance_group(enhancer, group, progress)
                    group = []
            else:
                yield _enhance_long(enhancer, job, found, treatment, progress)
        except UserError as error:
            yield Outcome(job, 0.0, error=error)
    if group:
        yield from _enhance_group(enhancer, group, progress)


def _check_length(job: Job, found: Survey, enhancer: "Enhancer") -> None:
    try:
        enhancer.check_seconds(found.seconds)
    except UserError as error:
        raise UserError(f"{job.recording.name}: {error}") from error


def _is_short(found: Survey, enhancer: "Enhancer") -> bool:
    # Several channels of a causal network share one running level: only its blocks know them together.
    together = not (enhancer.config.model.causal and len(found.distinct) > 1)
    return together and found.work_seconds <= SHORT_SECONDS


def _recomposer(enhancer: "Enhancer", found: Survey, treatment: Treatment) -> Recomposer:
    return Recomposer(found.format.sample_rate_hz, enhancer.config.stft.sample_rate_hz, len(found.distinct), treatment)


def _inputs(job: Job, found: Survey, recomposer: Recomposer) -> Iterator[np.ndarray]:
    """The distinct channels at the network's rate, in pieces [channels, n]."""
    for piece in read_pieces(job.recording):
        yield recomposer.take(np.ascontiguousarray(piece[:, found.distinct]))
    yield recomposer.take(np.zeros((0, len(found.distinct)), np.float32), last=True)


def _prepare(enhancer: "Enhancer", job: Job, found: Survey, treatment: Treatment) -> _Prepared:
    recomposer = _recomposer(enhancer, found, treatment)
    inputs = np.concatenate(list(_inputs(job, found, recomposer)), axis=1)
    return _Prepared(job, found, recomposer, inputs)


def _enhance_group(enhancer: "Enhancer", group: list[_Prepared], progress: Progress) -> Iterator[Outcome]:
    # Resampling may leave nothing of the shortest recordings.
    signals = [channel for part in group for channel in part.inputs if len(channel)]
    levels = [part.survey.level for part in group for channel in part.inputs if len(channel)]
    returned = iter(enhancer.many(signals, enhancer.config.stft.sample_rate_hz, levels) if signals else [])
    for part in group:
        enhanced = np.stack([next(returned) if len(channel) else channel for channel in part.inputs])
        pieces = (part.recomposer.give(enhanced), part.recomposer.end())
        try:
            yield _write(part.job, part.survey, pieces, progress, part.recomposer.notes())
        except UserError as error:
            yield Outcome(part.job, 0.0, error=error)


def _enhance_long(enhancer: "Enhancer", job: Job, found: Survey, treatment: Treatment, progress: Progress) -> Outcome:
    recomposer = _recomposer(enhancer, found, treatment)

    def pieces() -> Iterator[np.ndarray]:
        for enhanced in enhancer.blocks(_inputs(job, found, recomposer), found.level):
            yield recomposer.give(enhanced)
        yield recomposer.end()

    return _write(job, found, pieces(), progress, recomposer.notes())


def _copy_silence(job: Job, found: Survey, progress: Progress) -> Outcome:
    silence = (np.zeros((len(piece), 0), np.float32) for piece in read_pieces(job.recording))
    return _write(job, found, silence, progress, ["silent, copied"])


def _write(job: Job, found: Survey, pieces: Iterable[np.ndarray], progress: Progress, notes: list[str]) -> Outcome:
    """Writes the distinct channels [n, distinct] to all places where they belong."""
    given = found.format
    told = list(notes)
    if len(found.columns) > 1:
        told.append(f"{len(found.columns)} channels")
    target = output_format(job.target, given, found.samples)
    if target.container == "RF64" != given.container and job.target.suffix.lower() != ".rf64":
        told.append("written as RF64, since wav ends at 4 GB")

    def finish(temporary: Path) -> None:
        if remark := copy_tags(job.recording.path, temporary, given.container, target.container):
            told.append(remark)
        if job.backup:
            shutil.copymode(job.target, temporary)
            told.append(f"the original is {back_up(job.target).name}")

    texts = read_texts(job.recording, given.container, target.container)
    places = np.array([-1 if place is None else place for place in found.columns])
    with writing(job.target, target, texts, finish) as writer:
        for piece in pieces:
            if not np.isfinite(piece).all():
                raise UserError(f"{job.recording.name}: the network's output is not finite: take other weights")
            # The column after the last one is the silence of silent channels.
            padded = np.pad(piece, [(0, 0), (0, 1)])
            writer.write(padded[:, places])
            progress(len(piece) / given.sample_rate_hz)
    if writer.lost_texts:
        told.append(f"{', '.join(writer.lost_texts)} not kept: {target.container} files hold no text")
    if writer.clipped:
        over = 20 * np.log10(writer.peak)
        told.append(f"{writer.clipped} samples clipped at full scale, which the loudest exceeds by {over:.1f} dB")
    return Outcome(job, found.seconds, tuple(told))
