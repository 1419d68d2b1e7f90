"""The one form in which every score is handed on, written to JSON and put into tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .bootstrap import Interval

Better = Literal["lower", "higher"]
Detail = float | str | Sequence[float | str | None]


@dataclass(frozen=True)
class Score:
    """A number that says how a set of generated clips compares, and how much it can be trusted."""

    name: str
    value: float | None
    """None where it cannot be measured; `note` says why."""
    interval: Interval | None
    """How far the value may be off because there are only so many generated clips."""
    better: Better
    detail: Mapping[str, Detail] = field(default_factory=dict)
    """What the value was read from, such as the points of a fit."""
    note: str = ""
    """Why there is no value, or what to know of it."""
