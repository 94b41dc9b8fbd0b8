import itertools

import sweeps

from saf_jax.sweep_markdown import format_markdown
from saf_jax.sweep_results import make_table

FILES = [f"f{number}" for number in range(8)]


def test_means_differences_and_origins(tmp_path):
    spec = sweeps.spec_of("one", "two", "three")
    runs, sets = sweeps.planned(tmp_path, spec)
    shifts = {"one": 0.0, "two": 0.4}
    for run in runs:
        if run.row in shifts:
            pesq = {file: 1.5 + shifts[run.row] + 0.01 * run.seed + place / 10 for place, file in enumerate(FILES)}
            sweeps.finish(run, {sets[0]: pesq})
    table = make_table(spec, runs, sets, {"command": "saf-jax sweep mine", "spec": "mine", "budget": "small"}, tmp_path)
    lines = format_markdown(table).splitlines()
    assert lines[0] == "## Depth" and lines[2] == "How deep?"
    rows = {cells[1].strip(): cells for line in lines if len(cells := line.split("|")) == 11}
    assert rows["noisy"][6].strip() == "1.500"
    assert rows["one"][2:5] == [" 1,000 ", " 0.25 ", " 0.3 "] and rows["one"][6].strip() == "1.855 ±0.007"
    assert rows["two"][6].strip() == "2.255 ±0.007; +0.400 + (+0.400 to +0.400)"
    assert rows["three"][2:7] == [" - "] * 3 + [" 0 of 2 ", " - "]
    traced = [line for line in lines if "`runs/" in line]
    assert len(traced) == 4 and all("abc123" in line for line in traced)
    assert "- not there: three, seed 0: missing" in lines
    assert lines[-1] == "    saf-jax sweep mine"
    # Every table has as many cells in each row as in its heading.
    for before, line in itertools.pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert before.count("|") == line.count("|")
