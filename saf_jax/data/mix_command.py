"""`saf-jax mix`: a fixed test set of mixtures, the same for everybody who gives the same seed and files."""

import argparse
import contextlib
import fnmatch
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saf_jax import audio
from saf_jax.data import noises
from saf_jax.data.active_level import active_level_db, rms_db
from saf_jax.data.folders import holds_only, labels, whole_folder
from saf_jax.data.manifest import FILE_NAME, read_manifest, write_manifest
from saf_jax.data.mixing import gain_for_snr, reverberate
from saf_jax.errors import UserError
from saf_jax.files import user_errors
from saf_jax.worker_processes import usable_cores

_MARKER = "mix.json"
# Sets of another version are made anew: raise it when the same settings and recordings give other mixtures.
_VERSION = 2
_KINDS = ("clean", "noise", "noisy")
_COLUMNS = ("file", "clean_file", "speaker", "noise", "noise_file", "rir_file", "snr_db", "seconds")
_PEAK = 0.99
_TRIES = 20


class MixSettings(NamedTuple):
    """What a test set is made of; see the options of `saf-jax mix`."""

    clean: Path
    noise: Path
    out: Path
    snr_db: tuple[float, ...]
    rir: Path | None = None
    grid: bool = False
    files: int = 0
    seed: int = 0
    sample_rate_hz: int = 16000
    level_db: float = -26.0
    early_ms: float = 50.0
    format: str = "flac"
    turns: bool = False
    noise_files: tuple[str, ...] = ()


class _Plan(NamedTuple):
    name: str
    speech: Path
    speaker: str
    noise: Path
    kind: str
    room: Path | None
    snr_db: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    # "-5,0,5" is a value, not an option: argparse knows that of single negative numbers only.
    parser._negative_number_matcher = re.compile(r"^-\d[\d.,-]*$")
    parser.add_argument("--clean", type=Path, required=True, metavar="DIR", help="clean speech")
    parser.add_argument(
        "--noise", type=Path, required=True, metavar="DIR", help="noise; subfolders or a table name its kinds"
    )
    parser.add_argument(
        "--rir", type=Path, metavar="DIR", help="room impulse responses; the target keeps the early part"
    )
    parser.add_argument("--snr", required=True, metavar="DB,DB", help="signal-to-noise ratios, such as -5,0,5,10")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new folder: clean, noisy, noise, manifest"
    )
    parser.add_argument("--grid", action="store_true", help="every file in every kind of noise; else kinds take turns")
    parser.add_argument(
        "--files", type=int, default=0, metavar="N", help="take N clean files, evenly spread; default all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of noises, places and rooms")
    parser.add_argument("--rate", type=int, default=16000, metavar="HZ", help="of what is written")
    parser.add_argument("--level", type=float, default=-26.0, metavar="DB", help="active level of the speech")
    parser.add_argument("--early-ms", type=float, default=50.0, metavar="MS", help="early part of a room's sound")
    parser.add_argument("--format", choices=("flac", "wav"), default="flac")
    parser.add_argument("--turns", action="store_true", help="every file at one ratio only: the ratios take turns")
    parser.add_argument(
        "--noise-files",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="only noise whose file name is like one of these",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        ratios = tuple(float(item) for item in args.snr.split(","))
    except ValueError as error:
        raise UserError(f"--snr {args.snr}: write numbers with commas between them, such as -5,0,5,10") from error
    settings = MixSettings(
        args.clean, args.noise, args.out, ratios, args.rir, args.grid, args.files, args.seed, args.rate, args.level,
        args.early_ms, args.format, args.turns, tuple(args.noise_files),
    )  # fmt: skip
    count, made = make_mixtures(settings)
    print(f"{args.out}: {count} mixtures" + ("" if made else " are there already"))
    print(f"score: saf-jax eval --weights NAME --clean {args.out / 'clean'} --noisy {args.out / 'noisy'} --out RESULTS")
    return 0


def make_mixtures(settings: MixSettings) -> tuple[int, bool]:
    """Writes a test set: `out/clean`, `out/noisy` and `out/noise` (16 bit, equal names) and `out/manifest.csv`.

    The signal-to-noise ratio is the P.56 active level of the clean stem minus the RMS level of the noise stem. Each
    clean file meets each ratio; kinds of noise take turns so that every kind meets every ratio about equally often, or,
    with `grid`, each file meets each kind at each ratio. With `turns` each file meets one ratio.

    Returns:
      The number of mixtures, and whether they had to be made; the same settings and files find the finished set.

    Raises:
      UserError: a folder or file is bad, a recording is silent, or the output cannot be written.
    """
    _check(settings)
    plans = _plan(settings)
    marker = _marker(settings)
    if _read_marker(settings.out) == marker and all(
        (settings.out / name).is_file() for name in _names(settings, plans)
    ):
        return len(plans), False
    with whole_folder(settings.out, _is_ours) as folder:
        with ThreadPoolExecutor(usable_cores()) as pool:
            rows = list(pool.map(lambda item: _make(folder, settings, *item), enumerate(plans)))
        write_manifest(folder / FILE_NAME, _COLUMNS, rows)
        (folder / _MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
    return len(plans), True


def _names(settings: MixSettings, plans: Sequence[_Plan]) -> Iterator[str]:
    """The files of a set."""
    yield FILE_NAME
    for plan in plans:
        yield from (f"{kind}/{plan.name}.{settings.format}" for kind in _KINDS)


def fingerprint(settings: MixSettings) -> str:
    """Hash of what the mixtures follow from, wherever the folders lie: options, recordings, their labels."""
    return hashlib.sha256(json.dumps(_marker(settings), sort_keys=True).encode()).hexdigest()


def _check(settings: MixSettings) -> None:
    if settings.grid and settings.turns:
        raise UserError("--grid and --turns exclude each other: each file meets all ratios, or one")
    if not settings.snr_db or not all(math.isfinite(value) for value in settings.snr_db):
        raise UserError("--snr: name at least one ratio in dB, such as -5,0,5,10")
    if len(set(settings.snr_db)) < len(settings.snr_db):
        raise UserError("--snr: names a ratio twice: name each once")
    if settings.files < 0 or settings.seed < 0 or not 0 <= settings.early_ms < math.inf:
        raise UserError("--files, --seed and --early-ms must be finite and not negative")
    if not 1000 <= settings.sample_rate_hz <= 192000:
        raise UserError(f"--rate {settings.sample_rate_hz}: must lie between 1000 and 192000 Hz")
    if not -60 <= settings.level_db <= -5:
        raise UserError(f"--level {settings.level_db}: must lie between -60 and -5 dB")


def _plan(settings: MixSettings) -> list[_Plan]:
    speakers = _speakers(settings.clean)
    speech = sorted(speakers)
    if settings.files and settings.files < len(speech):
        speech = [speech[index * len(speech) // settings.files] for index in range(settings.files)]
    by_kind = _noise_by_kind(settings)
    kinds = sorted(by_kind)
    shift = _turn_shift(len(kinds), len(settings.snr_db))
    rooms = audio.list_audio(settings.rir) if settings.rir else []
    plans = []
    for number, file in enumerate(speech):
        ratios = settings.snr_db
        if settings.turns:
            ratios = (ratios[(number + shift * (number // len(kinds))) % len(ratios)],)
        for step, snr_db in enumerate(ratios):
            for kind in kinds if settings.grid else [kinds[(number + step) % len(kinds)]]:
                rng = np.random.default_rng([settings.seed, 1, len(plans)])
                stem = file.relative_to(settings.clean).with_suffix("").as_posix().replace("/", "-")
                plans.append(
                    _Plan(
                        f"{stem}_{_plain(kind)}_{snr_db:g}dB",
                        file,
                        speakers[file],
                        by_kind[kind][rng.integers(len(by_kind[kind]))],
                        kind,
                        rooms[rng.integers(len(rooms))] if rooms else None,
                        snr_db,
                    )
                )
    names = [plan.name for plan in plans]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{settings.clean}: two files would give the mixture {twice}: rename one")
    return plans


def _noise_by_kind(settings: MixSettings) -> dict[str, list[Path]]:
    by_kind: dict[str, list[Path]] = {}
    for file, kind in labels(settings.noise).items():
        if not settings.noise_files or any(fnmatch.fnmatch(file.name, pattern) for pattern in settings.noise_files):
            by_kind.setdefault(kind, []).append(file)
    if not by_kind:
        raise UserError(
            f"{settings.noise}: no file is named like {', '.join(settings.noise_files)}: change the patterns"
        )
    return by_kind


def _turn_shift(kinds: int, ratios: int) -> int:
    """By how many ratios the turn shifts after each round of the kinds, so that every kind meets every ratio."""
    return next(shift for shift in range(ratios) if math.gcd(kinds + shift, ratios) == 1)


def _speakers(folder: Path) -> dict[Path, str]:
    """Speakers where a table or subfolders tell them, else empty."""
    named = labels(folder)
    flat = all(label in (file.stem, "noise") for file, label in named.items())
    return dict.fromkeys(named, "") if flat else named


def _plain(kind: str) -> str:
    return re.sub(r"[^\w.-]+", "_", kind) or "noise"


def _make(folder: Path, settings: MixSettings, number: int, plan: _Plan) -> tuple:
    rate = settings.sample_rate_hz
    rng = np.random.default_rng([settings.seed, 2, number])
    clean = wet = audio.read_mono(plan.speech, rate)
    if plan.room is not None:
        wet, clean = reverberate(clean, audio.read_mono(plan.room, rate), rate, settings.early_ms)
    speech_db = active_level_db(clean, rate)
    if not math.isfinite(speech_db):
        raise UserError(f"{plan.speech}: is silent: no ratio can be held to it: remove it")
    source = audio.read_mono(plan.noise, rate)
    for _ in range(_TRIES):
        noise = noises.take(rng, source, len(clean))
        if rms_db(noise) > -100:
            break
    else:
        raise UserError(f"{plan.noise}: is silent where it was tried, {_TRIES} times: remove it")
    stems = _stems(clean, wet - clean, noise, plan.snr_db, 10 ** ((settings.level_db - speech_db) / 20), rate)
    held = active_level_db(stems["clean"], rate) - rms_db(stems["noise"])
    if not abs(held - plan.snr_db) <= 0.1:
        raise UserError(
            f"{plan.speech} with {plan.noise}: 16 bits hold {held:.2f} dB instead of {plan.snr_db:g}: choose a ratio "
            "nearer to 0 or another --level"
        )
    for kind, samples in stems.items():
        audio.write(folder / kind / f"{plan.name}.{settings.format}", audio.Audio(samples, rate, subtype="PCM_16"))
    return (
        f"noisy/{plan.name}.{settings.format}",
        plan.speech.relative_to(settings.clean).as_posix(),
        plan.speaker,
        plan.kind,
        plan.noise.relative_to(settings.noise).as_posix(),
        plan.room.relative_to(settings.rir).as_posix() if plan.room else "",
        f"{plan.snr_db:g}",
        f"{len(clean) / rate:.3f}",
    )


def _stems(
    clean: np.ndarray, late: np.ndarray, noise: np.ndarray, snr_db: float, gain: float, rate: int
) -> dict[str, np.ndarray]:
    """Target, noise and their mixture in steps of 16 bits, as loud as `gain` wants and full scale allows."""
    for _ in range(10):
        # Levels are measured on what is written: P.56 compares with fixed thresholds and does not follow gains exactly.
        target = _rounded(clean * gain)
        added = _rounded(noise * gain_for_snr(target, noise, snr_db, rate))
        # The mixture is the sum of the rounded stems: it holds what they state.
        noisy = target + _rounded(late * gain) + added
        peak = max(float(np.abs(stem).max()) for stem in (target, added, noisy))
        if peak <= 1 - 2**-15:
            break
        gain *= _PEAK / peak
    return {"clean": target, "noise": added, "noisy": noisy}


def _rounded(samples: np.ndarray) -> np.ndarray:
    return (np.rint(samples * 32768) / 32768).astype(np.float32)


def _marker(settings: MixSettings) -> dict:
    """What tells one test set from another, wherever its sources lie: settings, recordings and their labels."""
    plain = settings._asdict()
    for name in ("clean", "noise", "rir", "out"):
        plain.pop(name)
    speakers, kinds = _speakers(settings.clean), labels(settings.noise)
    rooms = dict.fromkeys(audio.list_audio(settings.rir), "") if settings.rir else {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        sources = {
            name: [
                [file.relative_to(folder).as_posix(), label, digest]
                for (file, label), digest in zip(named.items(), pool.map(_digest, named))
            ]
            for name, folder, named in (
                ("clean", settings.clean, speakers),
                ("noise", settings.noise, kinds),
                ("rir", settings.rir, rooms),
            )
        }
    return json.loads(json.dumps({"made_by": "saf-jax mix", "version": _VERSION, **plain, "sources": sources}))


def _digest(file: Path) -> str:
    with user_errors(file, "read"), file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _is_ours(folder: Path) -> bool:
    """True for a folder that holds nothing but a set of mixtures."""
    if _read_marker(folder) is None:
        return False
    with contextlib.suppress(UserError):
        names = [Path(row["file"]).name for row in read_manifest(folder / FILE_NAME, ("file",))]
        return holds_only(folder, {FILE_NAME, _MARKER, *(f"{kind}/{name}" for kind in _KINDS for name in names)})
    # Whose files are whose is not known any more.
    return holds_only(folder, {_MARKER})


def _read_marker(folder: Path) -> dict | None:
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("made_by") == "saf-jax mix" else None
