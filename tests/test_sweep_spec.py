import pytest

from saf_jax.config import config_folder, load_config
from saf_jax.errors import UserError
from saf_jax.sweep_spec import BUDGETS_FILE, load_budget, load_spec, resolve, settings_of

SPECS = sorted(path.stem for path in (config_folder() / "ablations").glob("*.yaml") if path.name != BUDGETS_FILE)


@pytest.mark.parametrize("budget", ["small", "paper"])
@pytest.mark.parametrize("name", SPECS)
def test_every_shipped_spec_resolves_under_both_budgets(name, budget):
    _, spec = load_spec(name)
    base = load_config(spec.base)
    configs = [resolve(base, settings_of(spec, row, budget, load_budget(budget)), name) for row in spec.rows]
    assert len(configs) > 1 and spec.reference in [row.name for row in spec.rows]
    kinds_of_noise = {row.noise for row in spec.rows}
    assert len({repr(config) for config in configs}) == len(configs) or len(kinds_of_noise) > 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("gird: {model.norm: [layer]}", "grid"),
        ("grid: {model.norm: [layer, nonsense]}", "nonsense"),
        ("grid: {model.norm: []}", "must be a list of values"),
        ("title: nothing", "give either rows or grid"),
        ("reference: none\ngrid: {model.layers: [1, 2]}", "must be a row"),
        ("seeds: [-1]\ngrid: {model.layers: [1, 2]}", r"seeds=\[-1\]: must not be negative"),
        ("grid: {train.seed: [1, 2]}", "train.seed: every row is trained with all seeds"),
        ("grid: {data.valid_clean: [[a], [b]]}", "all rows are scored on the same files"),
        (
            "rows: [{name: a, noise: {include: [x]}, set: {data.train_noise: [b]}}]",
            "give one of noise and data.train_noise",
        ),
        ("title: a\ngrid: {model.layers: [1, 2]}\ntitle: b", "has the key title a second time"),
    ],
)
def test_faults_of_a_spec_are_told_in_words(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=message):
        load_spec(str(path))
