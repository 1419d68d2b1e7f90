"""Ratings of one attribute as an array: systems × listeners × items.

Shapes: S systems, L listeners, I items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .ratings import Rating

COUNTED = ("scored", "reference", "anchor")
"""Roles whose ratings have a mean: practice and attention trials say nothing about a system."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Who rated what, and how. A listener need not have rated every item."""

    systems: Sequence[str]
    listeners: Sequence[str]
    items: Sequence[str]
    values: np.ndarray  # [S, L, I] float64, NaN where there is no rating

    def of(self, system: str) -> np.ndarray:
        """The ratings [L, I] of one system."""
        found: np.ndarray = self.values[self.systems.index(system)]
        return found


def counted(ratings: Iterable[Rating], attribute: str) -> list[Rating]:
    """The first answers about `attribute`; second ones measure the listener, and would count items twice."""
    return [
        rating
        for rating in ratings
        if rating.attribute == attribute and rating.role in COUNTED and rating.repeat == 0
    ]


def build_grid(ratings: Iterable[Rating], attribute: str, systems: Sequence[str]) -> Grid:
    """The first ratings of `systems` in `attribute`; several of one cell are averaged."""
    rows = [rating for rating in counted(ratings, attribute) if rating.system in systems]
    listeners = sorted({rating.listener for rating in rows})
    items = sorted({rating.item for rating in rows})
    place = {
        axis: {name: index for index, name in enumerate(names)}
        for axis, names in (("system", systems), ("listener", listeners), ("item", items))
    }
    sums = np.zeros((len(systems), len(listeners), len(items)))
    counts = np.zeros_like(sums)
    for rating in rows:
        cell = (
            place["system"][rating.system],
            place["listener"][rating.listener],
            place["item"][rating.item],
        )
        sums[cell] += rating.value
        counts[cell] += 1
    return Grid(
        systems, listeners, items, np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)
    )
