"""Whether one system is rated higher than another: tests, Holm's correction, effect sizes.

Wilcoxon's test over listeners asks whether other listeners would find the same difference with the same
items; over items, whether the same listeners would with other items. Neither asks for both. That does the
two-way bootstrap (intervals.py), whose p is therefore the one that decides.

Shapes: S systems, L listeners, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from ..bootstrap import Interval
from .grid import Grid
from .intervals import NUM_RESAMPLES, NoIntervalError, contrast_of, two_way

ALPHA = 0.05


MAX_EXACT = 200
"""Differences up to which Wilcoxon's p is exact; more are normal to any digit that is printed."""


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that `differences` [n] are symmetric around 0.

    Zeros are left out, as Wilcoxon did; equal sizes share their mean rank. Up to `MAX_EXACT` differences the
    p is exact, ties or not: the distribution of the rank sum over all 2ⁿ choices of signs, which is a product
    of n factors. 1 if all differences are zero.
    """
    moved = _moved(differences)
    if len(moved) == 0:
        return 1.0
    if len(moved) > MAX_EXACT:
        return float(stats.wilcoxon(moved, method="asymptotic").pvalue)
    doubled = np.rint(2 * stats.rankdata(np.abs(moved))).astype(
        int
    )  # whole numbers, in spite of shared ranks
    total = int(doubled.sum())
    chances = np.zeros(total + 1)
    chances[0] = 1.0
    for rank in doubled:
        shifted = np.concatenate([np.zeros(rank), chances[:-rank]])
        chances = (chances + shifted) / 2
    positive = int(doubled[moved > 0].sum())
    return min(1.0, 2 * float(chances[max(positive, total - positive) :].sum()))


def _moved(differences: np.ndarray) -> np.ndarray:
    """Those that are not zero; rounded, so that equal means of different sums are ties."""
    rounded = np.round(differences, 9)
    found: np.ndarray = rounded[rounded != 0.0]
    return found


def rank_sum_p(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p of the Mann–Whitney test that `a` [n] and `b` [m] come from one distribution."""
    if np.ptp(np.concatenate([a, b])) == 0.0:
        return 1.0
    return float(stats.mannwhitneyu(a, b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """`p_values` adjusted for their number, so that the chance of any false finding stays what it was.

    Holm, Scand. J. Statist. 6, 1979: the smallest times n, the next times n − 1, …, never falling, at most 1.
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def rank_biserial(differences: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation of `differences` [n], −1…1: 1 if all that are not 0 are above.

    The share of the rank sum that is positive less the share that is negative (Kerby, Comprehensive
    Psychology 3, 2014). 0 if all are zero.
    """
    moved = _moved(differences)
    if len(moved) == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(moved))
    return float(np.sum(np.sign(moved) * ranks) / np.sum(ranks))


def cliffs_delta(a: np.ndarray, b: np.ndarray) -> float:
    """How much more often a rating of `a` [n] is above one of `b` [m] than below, −1…1 (Cliff 1993)."""
    ordered = np.sort(b)
    below = np.searchsorted(ordered, a, side="left")
    above = len(b) - np.searchsorted(ordered, a, side="right")
    return float(np.sum(below - above) / (len(a) * len(b)))


@dataclass(frozen=True)
class Comparison:
    """Two systems, compared in one attribute."""

    attribute: str
    system: str
    against: str
    num_listeners: int
    """Listeners who rated both."""
    difference: float
    """Mean of `system` less mean of `against`; in A/B, the share of preferences less that of `against`."""
    rank_biserial: float
    """Effect size over listeners."""
    cliffs_delta: float | None
    """Effect size over single ratings; none in A/B, where there are no two groups."""
    interval: Interval | None = None
    """Of the difference, for other listeners and other items."""
    p: float | None = None
    """Of no difference, for other listeners and other items."""
    p_listeners: float | None = None
    """Wilcoxon's signed-rank test of the listeners' mean differences."""
    p_items: float | None = None
    """The same of the items' mean differences; Mann–Whitney's test where the systems share no items."""
    p_holm: float | None = None
    """`p`, adjusted for the number of comparisons in the test."""
    p_listeners_holm: float | None = None
    """`p_listeners`, adjusted likewise."""
    p_items_holm: float | None = None
    """`p_items`, adjusted likewise."""
    note: str = ""
    """Why something is missing."""

    @property
    def better(self) -> str | None:
        """The system that is rated higher, at a family-wise error of 5 %; None if neither is shown to be."""
        if self.p_holm is None or self.p_holm > ALPHA:
            return None
        return self.system if self.difference > 0 else self.against


@dataclass(frozen=True)
class Rules:
    """How the comparisons of a test are made."""

    min_listeners: int
    """Below this many there is neither an interval nor a test."""
    seed: int
    num_resamples: int = NUM_RESAMPLES


def rules_for(num_comparisons: int, min_listeners: int, seed: int) -> Rules:
    """Rules with resamples enough: a p cannot be below one over their number, and Holm multiplies it."""
    return Rules(min_listeners, seed, max(NUM_RESAMPLES, 100 * num_comparisons))


def _row_means(values: np.ndarray) -> np.ndarray:
    """Means of those rows of `values` [n, m] that have any value."""
    found: np.ndarray = np.nanmean(values[~np.isnan(values).all(axis=1)], axis=1)
    return found


def compare(grid: Grid, attribute: str, system: str, against: str, rules: Rules) -> Comparison:
    """Compare two systems of `grid`.

    Where the systems share items, a listener's difference is the mean over items that he or she rated in
    both; else it is the difference of the two means.
    """
    a, b = grid.of(system), grid.of(against)
    if np.isfinite(a - b).any():
        a, b = np.where(np.isnan(b), np.nan, a), np.where(np.isnan(a), np.nan, b)
        by_listener, p_items = _row_means(a - b), signed_rank_p(_row_means((a - b).T))
    else:
        both = ~np.isnan(a).all(axis=1) & ~np.isnan(b).all(axis=1)
        by_listener = _row_means(a[both]) - _row_means(b[both])
        p_items = rank_sum_p(_row_means(a.T), _row_means(b.T))
    pair, contrast = np.stack([a, b]), np.array([1.0, -1.0])
    found = Comparison(
        attribute=attribute,
        system=system,
        against=against,
        num_listeners=len(by_listener),
        difference=contrast_of(pair, contrast),
        rank_biserial=rank_biserial(by_listener),
        cliffs_delta=cliffs_delta(a[~np.isnan(a)], b[~np.isnan(b)]),
    )
    return _tested(found, pair, contrast, by_listener, p_items, rules)


def compare_preferences(
    values: np.ndarray, attribute: str, system: str, against: str, rules: Rules
) -> Comparison:
    """The same for A/B answers `values` [L, I]: 1 for `system`, −1 for `against`, 0 for neither."""
    by_listener = _row_means(values)
    found = Comparison(
        attribute=attribute,
        system=system,
        against=against,
        num_listeners=len(by_listener),
        difference=float(np.nanmean(values)),
        rank_biserial=rank_biserial(by_listener),
        cliffs_delta=None,
    )
    p_items = signed_rank_p(_row_means(values.T))
    return _tested(found, values[None], np.ones(1), by_listener, p_items, rules)


def _tested(
    found: Comparison,
    values: np.ndarray,
    contrast: np.ndarray,
    by_listener: np.ndarray,
    p_items: float,
    rules: Rules,
) -> Comparison:
    """`found` with an interval and p-values, or with a note that says why there are none."""
    if found.num_listeners < rules.min_listeners:
        return replace(found, note=too_few(found.num_listeners, rules.min_listeners))
    found = replace(found, p_listeners=signed_rank_p(by_listener), p_items=p_items)
    try:
        both = two_way(values, contrast, seed=rules.seed, num_resamples=rules.num_resamples)
    except NoIntervalError as error:
        return replace(found, note=f"No interval: {error}.")
    return replace(found, interval=both.interval, p=both.p)


def too_few(num_listeners: int, min_listeners: int) -> str:
    """Why a table has no interval."""
    people = "1 listener" if num_listeners == 1 else f"{num_listeners} listeners"
    return (
        f"No interval and no test: {people}, and the test was set up to give none below {min_listeners}"
        " (min_listeners)."
    )


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """`comparisons` with Holm's correction over all of them: a test's comparisons are one family."""
    both = _holm_of([one.p for one in comparisons])
    listeners = _holm_of([one.p_listeners for one in comparisons])
    items = _holm_of([one.p_items for one in comparisons])
    return [
        replace(one, p_holm=both[index], p_listeners_holm=listeners[index], p_items_holm=items[index])
        for index, one in enumerate(comparisons)
    ]


def _holm_of(p_values: Sequence[float | None]) -> list[float | None]:
    """`holm` of those that there are."""
    there = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(there) for p in p_values]
