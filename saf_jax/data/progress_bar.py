"""A bar on stderr for work over many files, where somebody looks and it takes a while."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_FROM_ITEMS = 300


def track(items: Iterable[Item], label: str, total: int, *, from_items: int = _FROM_ITEMS) -> Iterator[Item]:
    """Passes the items on; shows a bar if there are `from_items` or more and stderr is a terminal."""
    if total < from_items or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, label, total=total, console=Console(stderr=True), transient=True)
