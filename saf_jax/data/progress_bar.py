"""A bar on stderr for work over many files, where somebody looks and it takes a while."""

import sys
from collections.abc import Iterable, Iterator

_FROM_ITEMS = 300


def track(items: Iterable, label: str, total: int) -> Iterator:
    """Passes the items on; shows a bar if there are many and stderr is a terminal."""
    if total < _FROM_ITEMS or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, label, total=total, console=Console(stderr=True), transient=True)
