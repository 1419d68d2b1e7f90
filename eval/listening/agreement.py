"""Whether listeners agree with each other, and with themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .definition import Method
from .ratings import Rating

ALIKE: dict[Method, float] = {"acr": 1.0, "mushra": 10.0, "ab": 0.0}
"""Largest difference of two answers to the same question that counts as the same opinion: one step of five,
half a step of MUSHRA's scale of five times 20 points, the same choice."""


def krippendorff_alpha(values: np.ndarray) -> float | None:
    """Krippendorff's alpha for ordinal data: `values` [raters, units], NaN where there is none.

    1 is agreement in all, 0 what chance would give. Computing Krippendorff's Alpha-Reliability, 2011: values
    in units with one rating are not pairable and count nowhere. None without a unit that two raters rated,
    or if all pairable values are equal, where alpha is 0/0.
    """
    paired = values[:, (~np.isnan(values)).sum(axis=0) >= 2]
    levels = np.unique(paired[~np.isnan(paired)])
    if len(levels) < 2:
        return None
    # How often each level occurs in each unit: [units, levels].
    counts = np.stack([np.sum(paired == level, axis=0) for level in levels], axis=1).astype(np.float64)
    ratings = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs[:, range(len(levels)), range(len(levels))] -= counts  # a rating makes no pair with itself
    coincidences = np.sum(pairs / (ratings - 1)[:, None, None], axis=0)
    totals = coincidences.sum(axis=1)
    expected = np.outer(totals, totals) / (totals.sum() - 1)
    distance = _ordinal_distance(totals)
    return float(1.0 - np.sum(coincidences * distance) / np.sum(expected * distance))


def _ordinal_distance(totals: np.ndarray) -> np.ndarray:
    """Squared distances [levels, levels]: ratings between two levels, of which their own count half."""
    middles = np.cumsum(totals) - totals / 2
    distance: np.ndarray = (middles[:, None] - middles[None, :]) ** 2
    return distance


@dataclass(frozen=True)
class RepeatConsistency:
    """How far second answers to the same questions were from the first."""

    num_pairs: int
    equal: float
    """Share of pairs with the same value."""
    alike: float
    """Share of pairs within `ALIKE`."""
    mean_difference: float
    """Mean absolute difference, in points of the scale."""


def repeat_differences(ratings: Iterable[Rating]) -> dict[str, list[float]]:
    """Absolute differences of first and second answers, by listener."""
    first: dict[tuple[str, ...], float] = {}
    second: dict[tuple[str, ...], float] = {}
    for rating in ratings:
        if rating.role in ("practice", "attention"):
            continue
        key, value = _question(rating)
        (second if rating.repeat else first)[key] = value
    found: dict[str, list[float]] = {}
    for key, value in second.items():
        if key in first:
            found.setdefault(key[0], []).append(abs(value - first[key]))
    return found


def _question(rating: Rating) -> tuple[tuple[str, ...], float]:
    """Who was asked what, and the answer; in A/B it must not matter which of the two came first."""
    key = (rating.listener, rating.attribute, rating.item)
    if rating.against is None:
        return (*key, rating.system), rating.value
    one, other = sorted((rating.system, rating.against))
    return (*key, one, other), rating.value if one == rating.system else 1.0 - rating.value


def repeat_consistency(ratings: Iterable[Rating], method: Method) -> RepeatConsistency | None:
    """How consistent the listeners were with themselves; None if nothing was asked twice."""
    differences = np.array([one for many in repeat_differences(ratings).values() for one in many])
    if len(differences) == 0:
        return None
    return RepeatConsistency(
        num_pairs=len(differences),
        equal=float(np.mean(differences == 0.0)),
        alike=float(np.mean(differences <= ALIKE[method])),
        mean_difference=float(np.mean(differences)),
    )
