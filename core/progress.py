"""Progress bars for stages that go through a list, on standard error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def progress_bar() -> Progress:
    """A bar with a count and the time left; its description carries the figures."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=2,
    )


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Iterate over `items` under a bar."""
    with progress_bar() as bar:
        yield from bar.track(items, description=description)
