"""Puts the tables of sweeps into docs/experiments.md, each between its two marks; what they mean is written by hand.

for name in norm phase kernel local_window layers transformer; do saf-jax sweep $name --workdir DIR; done
python benchmarks/experiments.py DIR

A table whose sweep is not in DIR stays as it is.
"""

import argparse
import re
from pathlib import Path

from saf_jax.files import write_text
from saf_jax.sweep_markdown import format_markdown
from saf_jax.sweep_results import read_table

PAGE = Path(__file__).parent.parent / "docs" / "experiments.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="folder of the sweeps")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"<!-- sweep (\S+) -->", page):
        if not (args.workdir / name).is_dir():
            print(f"{name}: not in {args.workdir}, left as it is")
            continue
        table = read_table(args.workdir / name)
        if table["missing"] or table["failed"]:
            print(f"{name}: {', '.join(table['missing'] + table['failed'])}")
        page = put(page, name, table_text(name, table))
    write_text(PAGE, page)
    print(PAGE)


def table_text(name: str, table: dict) -> str:
    """The table without its heading, with a command that names no folder of this machine."""
    command = f"saf-jax sweep {name} --budget {table['budget']} --workdir runs/sweeps"
    return format_markdown(table | {"command": command}).partition("\n\n")[2]


def put(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of a sweep."""
    begin, end = f"<!-- sweep {name} -->\n", "<!-- end -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    main()
