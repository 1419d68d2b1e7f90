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


def hide_library_bars() -> None:
    """Turn off bars such as `Loading weights`: local files load in a blink, and a stage has a bar of its own.

    Downloads keep theirs. The libraries are imported here because they take a second.
    """
    import datasets
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    enable_progress_bars()  # which transformers has turned off too
