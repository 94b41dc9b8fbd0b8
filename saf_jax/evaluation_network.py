"""Enhancing a test set before it is scored: 16-bit files are written, and exactly these files are scored."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saf_jax import audio
from saf_jax.errors import UserError
from saf_jax.results import write_json

_RECORD = "made_with.json"
_BATCH_FILES = 16


class Network(NamedTuple):
    """A trained network, loaded.

    Attributes:
      config: its settings.
      variables: its parameters.
      fingerprint: hash of the parameters and of what the config says of the network.
    """

    config: Any
    variables: Any
    fingerprint: str


class Enhanced(NamedTuple):
    """What became of one file.

    Attributes:
      file: name of the pair.
      failure: reason, or None.
      clipped_samples: beyond full scale, limited when the file was written.
    """

    file: str
    failure: str | None = None
    clipped_samples: int = 0


class Clock:
    """Adds up the time within the network and the audio that went through it."""

    network_seconds = 0.0
    audio_seconds = 0.0


def load_network(weights: str) -> Network:
    """Loads weights by name or path."""
    import jax

    from saf_jax.config import config_to_dict
    from saf_jax.jit_cache import use_compilation_cache
    from saf_jax.pretrained import load_weights

    use_compilation_cache()
    config, variables = load_weights(weights)
    # How it was trained changes nothing: a setting that a later version adds there leaves the hash as it is.
    tree = config_to_dict(config)
    digest = hashlib.sha256(json.dumps({part: tree[part] for part in ("stft", "model")}, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return Network(config, variables, digest.hexdigest()[:16])


def output_path(folder: Path, file: str) -> Path:
    """Where the enhanced version of a file lies."""
    return folder / f"{file}.wav"


def check_targets(pairs: Sequence[audio.Pair], folder: Path) -> None:
    """Raises `UserError` if `enhance_pairs` would replace what it did not make, or write among its inputs."""
    record, inside = _read_record(folder / _RECORD), folder.resolve()
    for pair in pairs:
        for given in (pair.clean, pair.noisy):
            if given.resolve().is_relative_to(inside):
                raise UserError(f"{given}: lies where enhanced files are written: take another folder for --out")
        target = output_path(folder, pair.name)
        if pair.name not in record and os.path.lexists(target):
            raise UserError(
                f"{target}: was not made by an earlier call ({_RECORD} beside it does not name it): "
                "move it, or take another folder for --out"
            )


def enhance_pairs(
    network: Network, pairs: Sequence[audio.Pair], folder: Path, clock: Clock, enhancer: Callable | None = None
) -> Iterator[Enhanced]:
    """Writes the enhanced versions of the pairs' noisy files at 16 kHz; what is there from an earlier call is kept.

    Args:
      network: the network.
      pairs: the files; names without ending.
      folder: where the wav files go.
      clock: told the time within the network, compilation included.
      enhancer: stands in for `saf_jax.enhancement.Enhancer` of the network.

    Yields:
      One entry per pair, in order.
    """
    from saf_jax.metrics import SAMPLE_RATE_HZ

    record_path = folder / _RECORD
    record = _read_record(record_path)
    keys = {pair.name: f"{network.fingerprint} {_stamp(pair.noisy)}" for pair in pairs}
    missing = []
    for pair in pairs:
        if record.get(pair.name) == keys[pair.name] and output_path(folder, pair.name).is_file():
            yield Enhanced(pair.name)
        else:
            missing.append(pair)
    if missing and enhancer is None:
        from saf_jax.enhancement import Enhancer

        enhancer = Enhancer(network.config, network.variables)
    # Should this process die on the way: what is about to be replaced must not keep the old claim, and what is written
    # by then must be known as made here.
    if missing:
        record |= {pair.name: "" for pair in missing}
        write_json(record_path, record)
    for start in range(0, len(missing), _BATCH_FILES):
        signals, entries = {}, []
        for pair in missing[start : start + _BATCH_FILES]:
            try:
                samples = audio.read_mono(pair.noisy, SAMPLE_RATE_HZ)
            except UserError as error:
                entries.append(Enhanced(pair.name, str(error)))
                continue
            try:
                enhancer.check_seconds(len(samples) / SAMPLE_RATE_HZ)
            except UserError as error:
                entries.append(Enhanced(pair.name, f"{pair.name}: {error}"))
                continue
            signals[pair.name] = samples
        started = time.perf_counter()
        outputs = enhancer.many(list(signals.values()), SAMPLE_RATE_HZ) if signals else []
        clock.network_seconds += time.perf_counter() - started
        clock.audio_seconds += sum(map(len, signals.values())) / SAMPLE_RATE_HZ
        for name, samples in zip(signals, outputs, strict=True):
            samples = np.asarray(samples)
            if not np.isfinite(samples).all():
                entries.append(Enhanced(name, f"{name}: the network's output is not finite"))
                continue
            clipped = audio.write(output_path(folder, name), audio.Audio(samples, SAMPLE_RATE_HZ))
            record[name] = keys[name]
            entries.append(Enhanced(name, clipped_samples=clipped))
        # After the files: a record never claims what is not there.
        write_json(record_path, record)
        yield from entries


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _read_record(path: Path) -> dict[str, str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
