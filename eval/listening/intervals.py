"""Intervals of a mean opinion score: for other listeners and other items, and the naive one.

Ratings of one listener are alike, and so are ratings of one item. The mean of n ratings is therefore less
certain than a mean of n independent ones, and what it varies with is both who listened and what was heard.

Shapes: S systems, L listeners, I items, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..bootstrap import LEVEL, Interval

NUM_RESAMPLES = 2000

LEAST_SHARE = 0.25
"""Least variance of a resample, as a share of that of the ratings. Where one strict listener makes all the
difference, a resample without him or her has next to none, and one such ratio would decide the interval."""


class NoIntervalError(ValueError):
    """The ratings do not allow an interval; the message is a sentence that says why."""


def within_scale(interval: Interval, low: float, high: float) -> Interval:
    """The part of `interval` that lies on the scale from `low` to `high`."""
    return Interval(min(max(interval.low, low), high), max(min(interval.high, high), low), interval.level)


def naive_interval(values: np.ndarray, level: float = LEVEL) -> Interval:
    """mean ± z s/√n over the n ratings in `values` (any shape, NaN where there is none).

    What most papers print. It takes the ratings as independent, which they are not.
    Raises `NoIntervalError` for fewer than two ratings.
    """
    rated = values[~np.isnan(values)]
    if len(rated) < 2:
        raise NoIntervalError("it needs at least two ratings")
    half = stats.norm.ppf(0.5 + level / 2) * rated.std(ddof=1) / np.sqrt(len(rated))
    return Interval(float(rated.mean() - half), float(rated.mean() + half), level)


def contrast_of(values: np.ndarray, contrast: np.ndarray) -> float:
    """The sum over systems of `contrast` [S] times the mean of a system's ratings in `values` [S, L, I]."""
    return float(contrast @ np.nanmean(values.reshape(len(values), -1), axis=1))


@dataclass(frozen=True)
class TwoWay:
    """An estimate for other listeners and other items."""

    estimate: float
    interval: Interval
    p: float
    """Two-sided, of 0: at most 1 − level where the interval leaves 0 out, at most by one resample."""


def two_way(
    values: np.ndarray,
    contrast: np.ndarray | None = None,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
) -> TwoWay:
    """A mean, or a difference of means, with its interval for other listeners and other items.

    `values` [S, L, I] (or [L, I] for one system) are the ratings, NaN where there is none; `contrast` [S]
    weighs the systems' means, such as (1, −1) for a difference.

    Two-way cluster bootstrap: listeners and items are drawn with replacement, independently, and a rating
    counts as often as its listener times as often as its item (the pigeonhole bootstrap: Owen, Ann. Appl.
    Stat. 1, 2007). Quantiles of the resampled means are not used as they are: a resample of few listeners
    varies too little, one of single ratings up to three times too much. Each resampled mean is divided by
    its own two-way standard error, and the ends of the interval are where the absolute ratio has its
    quantile (the symmetric bootstrap-t: Hall, J. R. Statist. Soc. B 50, 1988). No resample's standard error
    counts as less than half of that of the ratings themselves (`LEAST_SHARE`).

    Raises `NoIntervalError` for fewer than two listeners or items, and if no system's ratings vary.
    """
    values = values[None] if values.ndim == 2 else values
    contrast = np.ones(len(values)) if contrast is None else np.asarray(contrast, dtype=np.float64)
    rated = ~np.isnan(values)
    listeners, items = rated.any(axis=(0, 2)), rated.any(axis=(0, 1))
    if listeners.sum() < 2 or items.sum() < 2:
        raise NoIntervalError("it needs at least two listeners and two items")
    cells = _Cells.of(values[:, listeners][:, :, items])
    centred, variance = cells.estimate(
        contrast, np.ones((1, cells.num_listeners)), np.ones((1, cells.num_items))
    )
    if variance[0] <= _ROUNDING:
        raise NoIntervalError("the ratings do not vary, so nothing says how far others would differ")
    error = float(np.sqrt(variance[0]))
    generator = np.random.default_rng(seed)
    estimates, variances = cells.estimate(
        contrast,
        draw_counts(cells.num_listeners, generator, num_resamples),
        draw_counts(cells.num_items, generator, num_resamples),
    )
    ratios = np.abs(estimates - centred[0]) / np.sqrt(np.maximum(variances, LEAST_SHARE * variance[0]))
    reach = float(np.quantile(ratios, level, method="higher"))
    estimate = contrast_of(values, contrast)
    beyond = int(np.count_nonzero(ratios >= abs(estimate) / error))
    return TwoWay(
        estimate,
        Interval(estimate - reach * error, estimate + reach * error, level),
        (1 + beyond) / (1 + len(ratios)),
    )


_ROUNDING = 1e-18
"""Variances below this are zero but for rounding; the smallest real one, of a single differing MUSHRA point
among 10⁶ ratings, is 1e-12."""


def draw_counts(count: int, generator: np.random.Generator, num_resamples: int) -> np.ndarray:
    """How often each of `count` listeners or items is drawn, [B, count]."""
    drawn = generator.multinomial(count, np.full(count, 1 / count), num_resamples)
    return drawn.astype(np.float64)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Ratings less their mean, zero where there is none, and where there is one."""

    values: np.ndarray  # [S, L, I]
    rated: np.ndarray  # [S, L, I], 0 or 1

    @classmethod
    def of(cls, values: np.ndarray) -> _Cells:
        rated = ~np.isnan(values)
        # Centred, so that the sums of squares below lose no digits.
        means = np.nanmean(values.reshape(len(values), -1), axis=1)[:, None, None]
        return cls(np.where(rated, values - means, 0.0), rated.astype(np.float64))

    @property
    def num_listeners(self) -> int:
        return int(self.values.shape[1])

    @property
    def num_items(self) -> int:
        return int(self.values.shape[2])

    def estimate(
        self, contrast: np.ndarray, listeners: np.ndarray, items: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The contrast of centred means and its two-way variance, each [≤ B], under weights [B, L], [B, I].

        Variance: that between listeners plus that between items less that between ratings, which both
        contain (Cameron, Gelbach and Miller, J. Bus. Econ. Statist. 29, 2011), with n/(n − 1) for listeners
        and for items; at least the larger of the two. Resamples without a rating of some system are left out.
        """
        counts = np.stack([np.sum((listeners @ rated) * items, axis=1) for rated in self.rated])  # [S, B]
        filled = (counts > 0).all(axis=0)
        listeners, items, counts = listeners[filled], items[filled], counts[:, filled]
        sums = np.stack([np.sum((listeners @ values) * items, axis=1) for values in self.values])
        means = sums / counts
        scale = contrast[:, None] / counts  # of a rating's deviation, in its contribution to the estimate
        by_listener = np.zeros_like(listeners)
        by_item = np.zeros_like(items)
        for one in range(len(contrast)):
            values, rated, mean = self.values[one], self.rated[one], means[one][:, None]
            by_listener += scale[one][:, None] * (items @ values.T - mean * (items @ rated.T))
            by_item += scale[one][:, None] * (listeners @ values - mean * (listeners @ rated))
        between_listeners = np.sum(listeners * by_listener**2, axis=1) * _corrected(self.num_listeners)
        between_items = np.sum(items * by_item**2, axis=1) * _corrected(self.num_items)
        both = between_listeners + between_items - self._between_ratings(scale, means, listeners, items)
        variance: np.ndarray = np.maximum.reduce([both, between_listeners, between_items])
        return contrast @ means, variance

    def _between_ratings(
        self, scale: np.ndarray, means: np.ndarray, listeners: np.ndarray, items: np.ndarray
    ) -> np.ndarray:
        """The variance [B] if each cell varied alone, its squares multiplied out so as to stay matrices."""

        def total(cells: np.ndarray) -> np.ndarray:
            found: np.ndarray = np.sum((listeners @ cells) * items, axis=1)
            return found

        variance = np.zeros(len(listeners))
        for a in range(len(scale)):
            for b in range(len(scale)):
                both = self.rated[a] * self.rated[b]
                product = (
                    total(self.values[a] * self.values[b])
                    - means[b] * total(self.values[a] * both)
                    - means[a] * total(self.values[b] * both)
                    + means[a] * means[b] * total(both)
                )
                variance += scale[a] * scale[b] * product
        return variance


def _corrected(count: int) -> float:
    return count / (count - 1)


@dataclass(frozen=True)
class Components:
    """Variances of a rating around its system's mean."""

    listener: float
    """Between listeners: some are stricter."""
    item: float
    """Between items: some are harder."""
    rest: float
    """Of a single rating: tastes for this item, and chance."""


def variance_components(values: np.ndarray) -> Components:
    """Variances in the ratings `values` [L, I] of one system, NaN where there is none.

    Moments of an unbalanced crossed design: sums of squares within listeners, within items and over all are
    set to their expectations (Gao and Owen, arXiv:1610.08088). Negative solutions are estimates of zero.
    Raises `NoIntervalError` where no listener rated two items or no item has two ratings.
    """
    rated = ~np.isnan(values)
    rated = rated[rated.any(axis=1)][:, rated.any(axis=0)]
    kept = values[~np.isnan(values).all(axis=1)][:, ~np.isnan(values).all(axis=0)]
    per_listener, per_item, total = rated.sum(axis=1), rated.sum(axis=0), int(rated.sum())
    spare_items, spare_listeners = total - len(per_listener), total - len(per_item)
    if spare_items <= 0 or spare_listeners <= 0:
        raise NoIntervalError(
            "that needs listeners who rated several items, and items that several listeners rated"
        )
    within_listeners = np.nansum((kept - np.nanmean(kept, axis=1, keepdims=True)) ** 2)
    within_items = np.nansum((kept - np.nanmean(kept, axis=0, keepdims=True)) ** 2)
    overall = np.nansum((kept - np.nanmean(kept)) ** 2)
    # Rows: the three sums; columns: how often each holds the variance of listeners, items and the rest.
    expected = np.array(
        [
            [0.0, spare_items, spare_items],
            [spare_listeners, 0.0, spare_listeners],
            [
                total - np.sum(per_listener**2) / total,
                total - np.sum(per_item**2) / total,
                total - 1,
            ],
        ]
    )
    solved = np.linalg.lstsq(expected, np.array([within_listeners, within_items, overall]), rcond=None)[0]
    listener, item, rest = (max(0.0, float(one)) for one in solved)
    return Components(listener, item, rest)
