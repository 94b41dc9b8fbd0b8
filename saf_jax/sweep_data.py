"""The recordings of a sweep: what its runs train on, and the fixed sets that all of them are scored on.

Everything is planned from names and sizes of files first, so that a run is known by its settings before anything is
written, and made once, by the process that starts the runs.
"""

import dataclasses
import fnmatch
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from saf_jax.config import Config
from saf_jax.errors import UserError
from saf_jax.files import user_errors
from saf_jax.sweep_processes import locked
from saf_jax.sweep_spec import Budget, NoiseFiles, Settings, TestSet, slug

_BABBLE_FILES, _BABBLE_VOICES, _BABBLE_SECONDS = 24, 6, 15
_RATE_HZ = 16000


@dataclasses.dataclass(frozen=True)
class ScoreSet:
    """Pairs that every run is scored on.

    Attributes:
      name: of the set in tables.
      key: name of its folder of scores; changes with the recordings.
      clean, noisy: folders.
    """

    name: str
    key: str
    clean: Path
    noisy: Path


@dataclasses.dataclass(frozen=True)
class SweepData:
    """What a sweep trains and scores on.

    Attributes:
      settings: fields of the section `data` for all runs.
      sets: the main set first.
      noise: by the rows' selections, the manifest that stands for the training noise.
      places: names of folders whose path may differ from machine to machine, for what runs are known by.
      makers: what has to be made before a run; each does nothing where all is there.
      folder: where it is made.
    """

    settings: Settings
    sets: tuple[ScoreSet, ...]
    noise: Mapping[NoiseFiles, Path]
    places: Mapping[str, str]
    makers: tuple[Callable[[], None], ...]
    folder: Path

    def make(self) -> None:
        """Makes what is not there yet; another sweep into the same folder waits meanwhile."""
        with locked(self.folder / ".lock"):
            for maker in self.makers:
                maker()

    def settings_for(self, noise: NoiseFiles) -> Settings:
        """Data settings of a row with that selection of noise."""
        chosen = {"data.train_noise": [str(self.noise[noise])]} if noise in self.noise else {}
        return {**self.settings, **chosen}


def audio_folder(argument: str | None) -> Path | None:
    """The folder of recordings: the argument, else what SAF_AUDIO names, else None.

    Raises:
      UserError: it is not there.
    """
    name = argument or os.environ.get("SAF_AUDIO")
    if not name:
        return None
    if not Path(name).is_dir():
        origin = "--audio" if argument else "SAF_AUDIO"
        raise UserError(
            f"{origin}={name}: no such folder: name one with train/clean, train/noise, dev/clean, dev/noise"
        )
    return Path(name).absolute()


def plan_data(
    workdir: Path,
    audio: Path | None,
    budget: Budget,
    given: Settings,
    selections: Sequence[NoiseFiles],
    tests: Sequence[TestSet],
) -> SweepData:
    """Decides what the runs of a sweep use; nothing is written.

    Args:
      workdir: folder of the sweep.
      audio: folder of recordings with train/clean, train/noise, train/rir, dev/clean and dev/noise, or None.
      budget: of the sweep.
      given: settings that all rows share; data that they name win over all others.
      selections: the rows' choices of noise.
      tests: sets besides the main one.

    Raises:
      UserError: data must be named, or what is named is not there.
    """
    folder = workdir / "data"
    settings: Settings = {}
    makers: list[Callable[[], None]] = []
    sets: list[ScoreSet] = []
    trains, validates = given.get("data.train_clean"), given.get("data.valid_clean")
    if not (trains and validates) and budget.own_data and audio is None:
        raise UserError(
            "this budget trains on data of your own: add --audio DIR (with train/clean, train/noise, dev/clean, "
            "dev/noise), or --set data.train_clean=DIR data.train_noisy=DIR data.valid_clean=DIR data.valid_noisy=DIR"
        )
    if not (trains and validates) and audio is None:
        corpus, more = folder / "demo", {}
        makers.append(lambda: _make_demo(corpus))
        if not trains:
            more |= {"train_clean": corpus / "train" / "clean", "train_noisy": corpus / "train" / "noisy"}
        if not validates:
            more |= {"valid_clean": corpus / "valid" / "clean", "valid_noisy": corpus / "valid" / "noisy"}
            sets.append(ScoreSet("test", "test-demo", corpus / "test" / "clean", corpus / "test" / "noisy"))
        settings |= {f"data.{key}": [str(path)] for key, path in more.items()}
    elif audio is not None:
        if not trains:
            for kind in ("clean", "noise", "rir"):
                if (place := audio / "train" / kind).is_dir():
                    settings[f"data.train_{kind}"] = [str(place)]
                elif kind != "rir" and f"data.train_{kind}" not in given:
                    raise UserError(f"{place}: no such folder: the recordings need train/clean and train/noise")
        if not validates:
            main, maker = _mixed(folder, audio, TestSet("dev", "dev/clean", noise="dev/noise", snr_db=budget.snr_db))
            sets.append(main)
            makers.append(maker)
            settings |= {"data.valid_clean": [str(main.clean)], "data.valid_noisy": [str(main.noisy)]}
    if validates:
        sets += _named_sets(given)
    for test in tests:
        made, maker = _mixed(folder, audio, test)
        sets.append(made)
        makers.append(maker)
    settings["data.cache_folder"] = str(folder / "cache")
    settings |= {key: value for key, value in given.items() if key.startswith("data.")}
    places = {str(workdir.absolute()): "WORKDIR"} | ({} if audio is None else {str(audio): "AUDIO"})
    noise: dict[NoiseFiles, Path] = {}
    for selection in dict.fromkeys(selections):
        if selection != NoiseFiles():
            noise[selection], known, maker = _manifest(folder, settings.get("data.train_noise", ()), selection, places)
            makers.append(maker)
            # In front of the folder that it lies in, which stands for a part of its path only.
            places = {str(noise[selection]): portable(str(known), places), **places}
    names = [item.name for item in sets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two sets to score are called {twice[0]!r}: give the one of --test or tests another name")
    return SweepData(settings, tuple(sets), noise, places, tuple(makers), folder)


def training_folders(config: Config) -> tuple[str, ...]:
    """All folders, and manifests, that a config trains on."""
    data = config.data
    return (*data.train_clean, *data.train_noisy, *data.train_noise, *data.train_rir)


def listing_of(sources: tuple[str, ...], made: Path) -> str:
    """Hash of what some folders and manifests hold; empty where all are below `made`, which is known by its recipe."""
    given = [Path(source) for source in sources if not Path(source).is_relative_to(made)]
    if not given:
        return ""
    return _hash([_manifest_text(path) if path.suffix == ".csv" else _listing(path) for path in given])


def _manifest_text(path: Path) -> str:
    with user_errors(path, "read"):
        return path.read_text(encoding="utf-8", errors="replace")


def portable(value: object, places: Mapping[str, str]) -> object:
    """The same value with the folders of `places` called by their names."""
    if isinstance(value, list | tuple):
        return [portable(item, places) for item in value]
    if isinstance(value, str):
        for path, name in places.items():
            if value == path or value.startswith(path + os.sep):
                return name + value[len(path) :]
    return value


def _make_demo(folder: Path) -> None:
    from saf_jax.data.demo_corpus import make_demo_corpus

    make_demo_corpus(folder)


def _named_sets(given: Settings) -> list[ScoreSet]:
    """The validation folders that were named, as sets to score."""
    clean, noisy = ([value] if isinstance(value, str) else list(value or ()) for value in (
        given.get("data.valid_clean"), given.get("data.valid_noisy")))  # fmt: skip
    if len(clean) != len(noisy):
        raise UserError("data.valid_clean and data.valid_noisy: name them in pairs")
    names = ["valid", *(f"valid_{number}" for number in range(2, len(clean) + 1))]
    return [_ready(name, Path(one), Path(other)) for name, one, other in zip(names, clean, noisy)]


def _ready(name: str, clean: Path, noisy: Path) -> ScoreSet:
    """A set of pairs that exist."""
    return ScoreSet(
        name, f"{slug(name)}-{_hash([_listing(clean), _listing(noisy)])}", clean.absolute(), noisy.absolute()
    )


def _mixed(folder: Path, audio: Path | None, test: TestSet) -> tuple[ScoreSet, Callable[[], None]]:
    """A set, and what makes it."""
    from saf_jax.data.mix_command import MixSettings, fingerprint, make_mixtures

    def place(name: str) -> Path:
        if audio is None and not Path(name).is_absolute():
            raise UserError(
                f"the set {test.name!r} needs recordings ({name}): name their folder with --audio or SAF_AUDIO"
            )
        return Path(name) if audio is None else audio / name

    clean = place(test.clean)
    if test.noisy:
        return _ready(test.name, clean, place(test.noisy)), lambda: None
    options = {
        "snr_db": tuple(test.snr_db),
        "rir": place(test.rir) if test.rir else None,
        "files": test.files,
        "turns": not test.every_ratio,
    }
    if test.babble:
        voices = place(test.babble)
        noise = folder / f"babble-{_hash([1, _BABBLE_FILES, _BABBLE_VOICES, _BABBLE_SECONDS, _listing(voices)])}"
        # The babble is not there yet: the set is known by the voices that it is made of.
        known = fingerprint(MixSettings(clean, voices, folder, **options)) + "babble"
    else:
        noise = place(test.noise)
        options["noise_files"] = tuple(test.noise_files)
        known = fingerprint(MixSettings(clean, noise, folder, **options))
    key = f"{slug(test.name)}-{_hash(known)}"
    out = folder / key

    def make() -> None:
        if (out / "manifest.csv").is_file():
            return
        if test.babble:
            _make_babble(noise, voices)
        make_mixtures(MixSettings(clean, noise, out, **options))

    return ScoreSet(test.name, key, out / "clean", out / "noisy"), make


def _make_babble(folder: Path, voices: Path) -> None:
    """Writes recordings of six people who talk at once."""
    import numpy as np

    from saf_jax import audio
    from saf_jax.data import noises
    from saf_jax.data.folders import whole_folder

    if folder.is_dir():
        return
    files = audio.list_audio(voices)
    with whole_folder(folder, lambda _: False) as partial:
        for number in range(_BABBLE_FILES):
            rng = np.random.default_rng([7, number])
            chosen = rng.choice(len(files), size=min(_BABBLE_VOICES, len(files)), replace=False)
            speech = [audio.read_mono(files[place], _RATE_HZ) for place in sorted(chosen)]
            samples = noises.babble(rng, speech, _BABBLE_SECONDS * _RATE_HZ)
            samples = 0.5 * samples / max(1e-9, np.abs(samples).max())
            audio.write(partial / "babble" / f"{number:02d}.flac", audio.Audio(samples, _RATE_HZ, subtype="PCM_16"))


def _manifest(
    folder: Path, sources: Sequence[str] | str, selection: NoiseFiles, places: Mapping[str, str]
) -> tuple[Path, Path, Callable[[], None]]:
    """The manifest that stands for a selection of the noise in folders.

    Returns:
      The manifest, the name that it is known by wherever the recordings lie, and what writes it. It names the files by
      their paths: machines that have them in different places write one each.
    """
    from saf_jax.data.examples import list_files
    from saf_jax.data.manifest import write_manifest

    sources = [sources] if isinstance(sources, str) else list(sources)
    files = [path for source in sources for path in list_files(source, "noise")]
    if not files:
        raise UserError("rows that choose noise files need data.train_noise: name a folder, or set SAF_AUDIO")
    for pattern in (*selection.include, *selection.exclude):
        if not any(fnmatch.fnmatch(path.name, pattern) for path in files):
            raise UserError(f"no file of data.train_noise ({', '.join(sources)}) is named like {pattern!r}")
    chosen = [path for path in files if _selected(path.name, selection)]
    if not chosen:
        raise UserError(f"{', '.join(sources)}: nothing is left of the noise after {selection}")
    known = [[portable(str(path), places), path.stat().st_size] for path in chosen]
    absolute = [str(path.absolute()) for path in chosen]
    out = folder / f"noise-{_hash(known)}-{_hash(absolute)}.csv"

    def make() -> None:
        write_manifest(out, ("file", "kind", "split"), [(path, "noise", "train") for path in absolute])

    return out, folder / f"noise-{_hash(known)}.csv", make


def _selected(name: str, selection: NoiseFiles) -> bool:
    included = not selection.include or any(fnmatch.fnmatch(name, pattern) for pattern in selection.include)
    return included and not any(fnmatch.fnmatch(name, pattern) for pattern in selection.exclude)


def _listing(folder: Path) -> list:
    from saf_jax import audio

    return [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in audio.list_audio(folder)]


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
