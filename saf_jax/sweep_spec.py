"""What a sweep asks: rows of settings, the seeds, the sets that they are scored on, and how large each run is.

A spec is a YAML file (`configs/ablations/`). The sizes of runs are the same for all specs and stand in one file,
`configs/ablations/budgets.yaml`.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saf_jax.config import Config, config_folder, config_from_dict, config_to_dict, fill_dataclass, load_config
from saf_jax.errors import UserError
from saf_jax.yaml_files import read_yaml

BUDGETS_FILE = "budgets.yaml"

Settings = dict[str, Any]
"""Values of config fields by "section.key"."""


@dataclasses.dataclass(frozen=True)
class NoiseFiles:
    """Which files of `data.train_noise` a row is trained with, by patterns of file names such as "esc10_Rain_*".

    Attributes:
      include: files must be like one of these; empty takes all.
      exclude: files must be like none of these.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
      name: what it is called.
      set: settings that make the row.
      budgets: by name of a budget, settings that hold only there.
      noise: the training noise that the row sees.
    """

    name: str = ""
    set: dict = dataclasses.field(default_factory=dict)
    budgets: dict = dataclasses.field(default_factory=dict)
    noise: NoiseFiles = NoiseFiles()


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Recordings that every run is scored on besides the main set: mixed once, or pairs that exist.

    Folders are paths, or lie in the folder of recordings (`--audio`).

    Attributes:
      name: what it is called.
      clean: folder of clean speech.
      noisy: its noisy versions; instead of everything below.
      noise: folder of noise.
      noise_files: patterns of names; empty takes all of the folder.
      babble: folder of speech: the noise is six voices of it at once.
      snr_db: ratios.
      every_ratio: each file at each ratio; else the ratios take turns.
      rir: folder of impulse responses: the speech is put into rooms.
      files: clean files taken, evenly spread; 0 takes all.
    """

    __test__ = False  # not pytest's

    name: str = ""
    clean: str = ""
    noisy: str = ""
    noise: str = ""
    noise_files: tuple[str, ...] = ()
    babble: str = ""
    snr_db: tuple[float, ...] = (0.0, 5.0, 10.0, 15.0)
    every_ratio: bool = False
    rir: str = ""
    files: int = 0


@dataclasses.dataclass(frozen=True)
class Spec:
    """A sweep; see `configs/ablations/`.

    Attributes:
      title: heading of the table.
      question: what it asks.
      base: the config that the settings change.
      set: settings of all rows.
      budgets: by name of a budget, settings of all rows that hold only there.
      rows: the rows; or
      grid: values by field; the rows are all combinations.
      reference: name of the row that the others are compared with; the first where empty.
      seeds: values of `train.seed`; those of the budget where empty.
      tests: further sets to score.
    """

    title: str = ""
    question: str = ""
    base: str = "paper"
    set: dict = dataclasses.field(default_factory=dict)
    budgets: dict = dataclasses.field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    grid: dict = dataclasses.field(default_factory=dict)
    reference: str = ""
    seeds: tuple[int, ...] = ()
    tests: tuple[TestSet, ...] = ()


@dataclasses.dataclass(frozen=True)
class Budget:
    """How large the runs are.

    Attributes:
      seeds: values of `train.seed` where neither the spec nor the call names any.
      set: settings of all runs.
      snr_db: ratios of the main set, which take turns, where it is mixed.
      own_data: the data must be named; else recordings at hand or the demo corpus stand in.
    """

    seeds: tuple[int, ...] = (0,)
    set: dict = dataclasses.field(default_factory=dict)
    snr_db: tuple[float, ...] = (0.0, 5.0, 10.0, 15.0)
    own_data: bool = False


def load_spec(source: str) -> tuple[str, Spec]:
    """Reads a spec.

    Args:
      source: path of a YAML file, or the name of a spec that comes with the package, such as "phase".

    Returns:
      Its name (the file's, without ending), and the spec with `grid` written out as rows and `reference` filled in.

    Raises:
      UserError: no such file, no YAML, an unknown key (the nearest one is named), or values that do not fit.
    """
    path = Path(source)
    if not path.is_file():
        known = sorted(item.stem for item in _folder().glob("*.yaml") if item.name != BUDGETS_FILE)
        if source not in known:
            raise UserError(f"{source}: no such spec, nor one that comes with the package ({', '.join(known)})")
        path = _folder() / f"{source}.yaml"
    spec = fill_dataclass(Spec(), read_yaml(path), str(path))
    return path.stem, _completed(spec, str(path))


def load_budget(name: str) -> Budget:
    """A budget by its name.

    Raises:
      UserError: there is none of that name.
    """
    path = _folder() / BUDGETS_FILE
    budgets = read_yaml(path)
    if name not in budgets:
        raise UserError(f"--budget {name}: must be one of {', '.join(budgets)}")
    return fill_dataclass(Budget(), budgets[name], f"{path}: {name}")


def settings_of(spec: Spec, row: Row, budget_name: str, budget: Budget) -> Settings:
    """The settings of a row: the budget's, then the spec's, then the row's; later ones win."""
    return {
        **budget.set,
        **spec.set,
        **spec.budgets.get(budget_name, {}),
        **row.set,
        **row.budgets.get(budget_name, {}),
    }


def own_data(row: Row, budget_name: str) -> Settings:
    """What a row sets of the section `data`: it wins over the sweep's data, like all that rows set."""
    own = {**row.set, **row.budgets.get(budget_name, {})}
    return {key: value for key, value in own.items() if key.startswith("data.")}


def varied_keys(spec: Spec) -> set[str]:
    """The fields that rows set: a call cannot set them for all."""
    return {key for row in spec.rows for part in (row.set, *row.budgets.values()) for key in part}


def resolve(base: Config, settings: Mapping[str, Any], where: str) -> Config:
    """The base config with settings.

    Raises:
      UserError: unknown fields or values that do not fit; says where they stand.
    """
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        section, dot, name = str(key).partition(".")
        if not dot:
            raise UserError(f"{where}: {key}: write fields as section.key, such as model.width")
        tree.setdefault(section, {})[name] = value
    config = config_from_dict(tree, where=where, base=base)
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return config


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the arguments of `--set`."""
    # Not in ASCII: YAML does not put the two halves of JSON's escapes together.
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]


def parse_overrides(items: Sequence[str]) -> Settings:
    """Arguments of `--set` as settings; their keys and types are checked when they meet a config."""
    import yaml

    settings = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or "." not in key:
            raise UserError(f"--set {item}: write it as section.key=value, such as train.steps=200")
        try:
            settings[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {item}: the value is not YAML: {' '.join(str(error).split())}") from error
    return settings


def changed_settings(config: Config, base: Config) -> Settings:
    """The fields in which a config differs from another, with its values."""
    ours, theirs = config_to_dict(config), config_to_dict(base)
    return {
        f"{section}.{key}": value
        for section, fields in ours.items()
        for key, value in fields.items()
        if value != theirs[section][key]
    }


def slug(text: str) -> str:
    """Text as a part of a file name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_") or "none"


def _completed(spec: Spec, where: str) -> Spec:
    """The spec with rows for its grid and a reference, checked."""
    if bool(spec.rows) == bool(spec.grid):
        raise UserError(f"{where}: give either rows or grid: what should be compared?")
    rows = spec.rows or tuple(_grid_rows(spec.grid, where))
    names = [row.name for row in rows]
    if "" in names:
        raise UserError(f"{where}: rows.{names.index('') + 1}: has no name")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: two rows are called {twice[0]!r}: give each a name of its own")
    reference = spec.reference or names[0]
    if reference not in names:
        raise UserError(f"{where}: reference={reference!r}: must be a row: {', '.join(names)}")
    if len(set(spec.seeds)) < len(spec.seeds):
        raise UserError(f"{where}: seeds={list(spec.seeds)}: names one twice")
    if min(spec.seeds, default=0) < 0:
        raise UserError(f"{where}: seeds={list(spec.seeds)}: must not be negative")
    _check_budgets(spec, rows, where)
    for settings in (
        spec.set,
        *spec.budgets.values(),
        *(part for row in rows for part in (row.set, *row.budgets.values())),
    ):
        if "train.seed" in settings:
            raise UserError(f"{where}: train.seed: every row is trained with all seeds: name them in seeds")
    for row in rows:
        for key in {key for part in (row.set, *row.budgets.values()) for key in part}:
            if key.startswith("data.valid_"):
                raise UserError(
                    f"{where}: row {row.name!r}: {key}: all rows are scored on the same files: name them in set"
                )
            if key == "data.train_noise" and row.noise != NoiseFiles():
                raise UserError(
                    f"{where}: row {row.name!r}: give one of noise and data.train_noise: they choose the same"
                )
    for test in spec.tests:
        _check_test(test, where)
    tests = [test.name for test in spec.tests]
    if twice := [name for name in tests if tests.count(name) > 1]:
        raise UserError(f"{where}: two tests are called {twice[0]!r}: give each a name of its own")
    completed = dataclasses.replace(spec, rows=rows, reference=reference)
    base = load_config(spec.base)
    for row in rows:
        # Data are there only when it is run; all else can be wrong already here.
        for name in ("", *_budget_names()):
            resolve(base, settings_of(completed, row, name, Budget()), f"{where}: row {row.name!r}")
    return completed


def _grid_rows(grid: Mapping[str, Any], where: str) -> list[Row]:
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: grid.{key}={values!r}: must be a list of values")
    rows = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values))
        name = ", ".join(f"{key.partition('.')[2] or key} {_shown(value)}" for key, value in settings.items())
        rows.append(Row(name, settings))
    return rows


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check_budgets(spec: Spec, rows: Sequence[Row], where: str) -> None:
    known = _budget_names()
    for place, budgets in (("budgets", spec.budgets), *((f"row {row.name!r}: budgets", row.budgets) for row in rows)):
        for name, settings in budgets.items():
            if name not in known:
                raise UserError(f"{where}: {place}: unknown budget {name}: known: {', '.join(known)}")
            if not isinstance(settings, dict):
                raise UserError(f"{where}: {place}.{name}={settings!r}: must be 'key: value' lines")


def _check_test(test: TestSet, where: str) -> None:
    place = f"{where}: test {test.name!r}"
    if not test.name or not test.clean:
        raise UserError(f"{place}: needs a name, and clean: a folder of speech")
    given = [name for name in ("noisy", "noise", "babble") if getattr(test, name)]
    if len(given) != 1:
        raise UserError(f"{place}: give one of noisy, noise and babble (given: {', '.join(given) or 'none'})")
    if not test.snr_db:
        raise UserError(f"{place}: snr_db names no ratio")


def _budget_names() -> list[str]:
    return list(read_yaml(_folder() / BUDGETS_FILE))


def _folder() -> Path:
    return config_folder() / "ablations"
