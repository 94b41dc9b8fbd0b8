"""`saf-jax prepare`: training data from the official corpus, or from any folders of speech and noise."""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from saf_jax import audio
from saf_jax.data.manifest import FILE_NAME, check_manifest, read_manifest, write_manifest
from saf_jax.data.progress_bar import track
from saf_jax.errors import UserError
from saf_jax.files import make_folder, user_errors
from saf_jax.worker_processes import usable_cores

FOLDER_COLUMNS = ("file", "kind", "split", "label", "seconds", "sample_rate_hz", "channels")
_SAMPLE_RATE_HZ = 16000
# What --convert wrote into the folder, and is to write: noted before anything is converted.
_CONVERTED, _CONVERTED_COLUMN = "converted.csv", "converted_by_saf_jax"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    corpus = what.add_parser("voicebank-demand", help="fetch and convert Voice Bank + DEMAND (28 speakers, 16 kHz)")
    corpus.add_argument("--root", type=Path, required=True, metavar="DIR", help="where the corpus goes")
    corpus.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="take the official zip archives from here"
    )
    corpus.add_argument("--format", choices=("flac", "wav"), default="flac")
    corpus.add_argument("--jobs", type=int, default=0, metavar="N", help="threads; default one a core")
    corpus.add_argument(
        "--discard-archives", action="store_true", help="delete the archives in DIR/archives at the end"
    )
    corpus.add_argument("--url", default="", help="another server that holds the official archives")
    folder = what.add_parser("folder", help="check folders of clean speech and noise and write a manifest")
    folder.add_argument("--clean", type=Path, nargs="+", default=[], metavar="DIR", help="clean speech")
    folder.add_argument("--noise", type=Path, nargs="+", default=[], metavar="DIR", help="noise")
    folder.add_argument("--rir", type=Path, nargs="+", default=[], metavar="DIR", help="room impulse responses")
    folder.add_argument("--root", type=Path, required=True, metavar="DIR", help="where the manifest goes")
    folder.add_argument("--convert", action="store_true", help="also write all good files there, 16 kHz flac, by split")
    folder.add_argument("--valid", type=float, default=0.05, metavar="PART", help="part of the speakers for validation")
    folder.add_argument(
        "--speaker", choices=("auto", "folder", "prefix", "none"), default="auto", help="what names speakers"
    )
    folder.add_argument("--min-seconds", type=float, default=0.5, metavar="S", help="leave out what is shorter")


def run(args: argparse.Namespace) -> int:
    """Runs the command; status 1 if files were left out."""
    return _run_voicebank(args) if args.what == "voicebank-demand" else _run_folder(args)


def _run_voicebank(args: argparse.Namespace) -> int:
    from saf_jax.data import download, voicebank

    if args.jobs < 0:
        raise UserError(f"--jobs {args.jobs}: must not be negative; 0 is one a core")
    root = args.root
    other = "wav" if args.format == "flac" else "flac"
    if any(path for split in ("train", "valid", "test") for path in root.glob(f"{split}/*/*.{other}")):
        raise UserError(f"{root}: holds the corpus as {other} already: say --format {other}, or name another folder")
    check_manifest(root / FILE_NAME, voicebank.COLUMNS)
    counts = voicebank.finished(root)
    archives = args.source or root / "archives"
    if counts is None:
        if args.source is not None:
            if not args.source.is_dir():
                raise UserError(
                    f"{args.source}: no such folder: --from names the folder with the official zip archives"
                )
        else:
            url = args.url or voicebank.BASE_URL
            missing = [name for name in voicebank.ARCHIVES if not (archives / name).exists()]
            wanted = download.remote_bytes(missing, url, archives)
            if missing:
                wanted = voicebank.APPROXIMATE_BYTES if wanted is None else wanted
                voicebank.check_space(root, round(wanted * 1.3), "fetching and converting the corpus")
            by_hand = f"fetch the archives by hand from {voicebank.PAGE_URL} and name their folder with --from"
            download.fetch_archives(voicebank.ARCHIVES, url, archives, by_hand=by_hand)
        sources = voicebank.open_sources(archives)
        try:
            done = sum(path.stat().st_size for path in root.rglob(f"*.{args.format}")) if root.is_dir() else 0
            voicebank.check_space(root, voicebank.output_bytes(sources, args.format) - done, "converting the corpus")
            counts = voicebank.prepare(root, sources, audio_format=args.format, jobs=args.jobs)
        finally:
            for source in sources.values():
                source.close()
        if args.source is None:
            download.record_archives(voicebank.ARCHIVES, archives)
    if args.discard_archives and args.source is None:
        for name in voicebank.ARCHIVES:
            with user_errors(archives / name, "delete"):
                (archives / name).unlink(missing_ok=True)
    print(f"{root}: {counts['train']} training, {counts['valid']} validation, {counts['test']} test pairs")
    for split, official in voicebank.OFFICIAL_PAIRS.items():
        have = counts[split] + (counts["valid"] if split == "train" else 0)
        if have != official:
            print(f"note: {have} {split} pairs, the official corpus has {official}", file=sys.stderr)
    names = ("train_clean=train/clean", "train_noisy=train/noisy", "valid_clean=valid/clean", "valid_noisy=valid/noisy")
    settings = [f"data.{name.replace('=', f'={root}/')}" for name in names]
    print(f"train on it: saf-jax train --config paper --workdir runs/paper --set {' '.join(settings)}")
    return 0


def _run_folder(args: argparse.Namespace) -> int:
    from saf_jax.data import survey

    if not args.clean and not args.noise and not args.rir:
        raise UserError("name folders to look through: --clean DIR, --noise DIR, --rir DIR")
    if not 0 <= args.valid < 1:
        raise UserError(f"--valid {args.valid}: must lie in [0, 1)")
    check_manifest(args.root / FILE_NAME, FOLDER_COLUMNS)
    check_manifest(args.root / _CONVERTED, (_CONVERTED_COLUMN,))
    folders = [(kind, folder) for kind in ("clean", "noise", "rir") for folder in getattr(args, kind)]
    found = survey.survey(folders, survey.Rules(args.min_seconds, args.speaker, args.valid))
    root = make_folder(args.root)
    good = [finding for finding in found if not finding.problem]
    bad = [finding for finding in found if finding.problem]
    for finding in bad:
        print(f"left out: {survey.display(finding.path)}: {finding.problem}", file=sys.stderr)
    write_manifest(root / "left_out.csv", ("file", "problem"), [(survey.display(f.path), f.problem) for f in bad])
    if not good:
        raise UserError(f"none of the {len(found)} recordings can be used: see {root / 'left_out.csv'}")
    if args.convert:
        places = _places(good)
        former = _former(root)
        _check_places(root, set(places.values()) - former, [finding.path for finding in found])
        write_manifest(
            root / _CONVERTED, (_CONVERTED_COLUMN,), [(name,) for name in sorted({*places.values(), *former})]
        )
        _convert(root, places)
        _remove(root, former - set(places.values()))
        write_manifest(root / _CONVERTED, (_CONVERTED_COLUMN,), [(name,) for name in sorted(places.values())])
    else:
        places = {f.path: str(f.path.resolve()) for f in good}
    write_manifest(
        root / FILE_NAME,
        FOLDER_COLUMNS,
        [
            (places[f.path], f.kind, f.split, f.label, f"{f.seconds:.3f}", f.sample_rate_hz, f.channels)
            if not args.convert
            else (places[f.path], f.kind, f.split, f.label, f"{f.seconds:.3f}", _SAMPLE_RATE_HZ, 1)
            for f in good
        ],
    )
    for kind in ("clean", "noise", "rir"):
        for split in ("train", "valid", "test"):
            part = [f for f in good if f.kind == kind and f.split == split]
            if part:
                labels = len({f.label for f in part if f.label})
                named = f", {labels} {'speakers' if kind == 'clean' else 'kinds'}" if labels else ""
                print(f"{split} {kind}: {len(part)} recordings, {sum(f.seconds for f in part) / 60:.1f} minutes{named}")
    print(f"{root / FILE_NAME}: {len(good)} recordings, {len(bad)} left out")
    kinds = [kind for kind in ("clean", "noise", "rir") if any(f.kind == kind for f in good)]
    print("train on it: --set " + " ".join(f"data.train_{kind}={root / FILE_NAME}" for kind in kinds))
    return 1 if bad else 0


def _former(root: Path) -> set[str]:
    """What earlier calls converted or were about to: it could lie in another part of the data now."""
    names: set[str] = set()
    # Versions without the list of its own named the files in the manifest alone.
    for table, column in ((_CONVERTED, _CONVERTED_COLUMN), (FILE_NAME, "file")):
        if (root / table).is_file():
            names |= {row[column] for row in read_manifest(root / table, (column,))}
    return {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}


def _places(good: list) -> dict[Path, str]:
    """Where each file goes below the root: SPLIT/KIND/LABEL/NAME.flac."""
    places: dict[Path, str] = {}
    taken: set[str] = set()
    for finding in good:
        folder = f"{finding.split}/{finding.kind}" + (f"/{finding.label}" if finding.label else "")
        name, number = f"{folder}/{finding.path.stem}.flac", 1
        while name in taken:
            number += 1
            name = f"{folder}/{finding.path.stem}-{number}.flac"
        taken.add(name)
        places[finding.path] = name
    return places


def _check_places(root: Path, new: set[str], sources: list[Path]) -> None:
    """Whether files may be written there that no earlier call wrote.

    Raises:
      UserError: one is there, as where the recordings themselves lie.
    """
    own = {path.resolve() for path in sources}
    for name in sorted(new):
        target = root / name
        if target.resolve() in own:
            raise UserError(f"{target}: is one of the recordings, which would be replaced: name another --root")
        if os.path.lexists(target):
            raise UserError(f"{target}: exists and was not made by an earlier call: move it, or name another --root")


def _convert(root: Path, places: dict[Path, str]) -> None:
    """Writes 16 kHz flac files."""

    def convert(path: Path) -> None:
        samples = audio.read_mono(path, _SAMPLE_RATE_HZ)
        # Floating-point recordings may go beyond full scale, and resampling may; 16 bits may not.
        peak = float(np.abs(samples).max())
        audio.write(root / places[path], audio.Audio(samples / max(peak, 1.0), _SAMPLE_RATE_HZ))

    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in track(pool.map(convert, places), "converting", len(places)):
            pass


def _remove(root: Path, names: set[str]) -> None:
    for name in sorted(names):
        with user_errors(root / name, "remove"):
            (root / name).unlink(missing_ok=True)
