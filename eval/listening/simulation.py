"""Listeners made of random numbers: what a study of known effects looks like.

A rating is its system's mean, plus deviations of the listener, of the item, of this listener for this system,
of this item in this system, and of this single rating; all normal and independent; then rounded to the scale.

Shapes: N studies, S systems, L listeners, I items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .intervals import Components, NoIntervalError, variance_components

Scale = tuple[float, float]
ACR: Scale = (1.0, 5.0)


@dataclass(frozen=True)
class RaterModel:
    """Standard deviations, in points of the scale."""

    listener: float = 0.4
    """Between listeners: some are stricter than others, with all systems."""
    item: float = 0.3
    """Between items: some pieces please more, from all systems."""
    listener_system: float = 0.2
    """Of a listener's liking for one system over others."""
    item_system: float = 0.4
    """Of how well a system did this item."""
    rest: float = 0.7
    """Of a single rating."""

    @property
    def total(self) -> float:
        """Standard deviation of the ratings of one system, before rounding."""
        return math.sqrt(
            self.listener**2 + self.item**2 + self.listener_system**2 + self.item_system**2 + self.rest**2
        )


def simulate(
    model: RaterModel,
    means: Sequence[float],
    *,
    num_studies: int,
    num_listeners: int,
    num_items: int,
    generator: np.random.Generator,
    items_per_listener: int | None = None,
    scale: Scale = ACR,
) -> np.ndarray:
    """Ratings [N, S, L, I] of systems with the latent `means` [S], NaN where a listener did not rate.

    Each listener rates all items, or the next `items_per_listener` of them after the listener before, in all
    systems.
    """

    def normal(sd: float, *shape: int) -> np.ndarray:
        drawn: np.ndarray = sd * generator.standard_normal((num_studies, *shape))
        return drawn

    num_systems = len(means)
    latent = np.asarray(means, dtype=np.float64)[:, None, None] + (
        normal(model.listener, 1, num_listeners, 1)
        + normal(model.item, 1, 1, num_items)
        + normal(model.listener_system, num_systems, num_listeners, 1)
        + normal(model.item_system, num_systems, 1, num_items)
        + normal(model.rest, num_systems, num_listeners, num_items)
    )
    ratings: np.ndarray = np.clip(np.rint(latent), *scale)
    if items_per_listener is not None and items_per_listener < num_items:
        first = np.arange(num_listeners)[:, None] * items_per_listener
        rated = (np.arange(num_items) - first) % num_items < items_per_listener
        ratings = np.where(rated, ratings, np.nan)
    return ratings


def expected_rating(mean: float, sd: float, scale: Scale = ACR) -> float:
    """Mean of a normal variable after rounding to whole numbers on the scale: the true mean opinion score."""
    thresholds = np.arange(scale[0], scale[1]) + 0.5
    return float(scale[0] + stats.norm.sf(thresholds, loc=mean, scale=sd).sum())


def fitted_model(values: np.ndarray, rounding: float = 1.0) -> RaterModel:
    """The `RaterModel` that a study's ratings [S, L, I] come from, by moments; needs two systems or more.

    `rounding` is the distance of neighbouring values of the scale: its variance of rounding (a twelfth of
    the square) is taken off the rest, because a simulation rounds again. Raises `NoIntervalError` where the
    ratings are too few.
    """
    singles = [variance_components(one) for one in values]
    pairs = [
        variance_components(values[a] - values[b])
        for a in range(len(values))
        for b in range(a)
        if np.isfinite(values[a] - values[b]).any()
    ]
    if not pairs:
        raise NoIntervalError(
            "variances of differences need two systems, in which listeners rated the same items"
        )
    single, difference = _mean(singles), _mean(pairs)
    # A difference of two systems holds each of their own deviations twice, and no common one.
    listener_system, item_system = difference.listener / 2, difference.item / 2
    return RaterModel(
        listener=math.sqrt(max(0.0, single.listener - listener_system)),
        item=math.sqrt(max(0.0, single.item - item_system)),
        listener_system=math.sqrt(listener_system),
        item_system=math.sqrt(item_system),
        rest=math.sqrt(max(0.0, difference.rest / 2 - rounding**2 / 12)),
    )


def _mean(components: Sequence[Components]) -> Components:
    return Components(
        listener=float(np.mean([one.listener for one in components])),
        item=float(np.mean([one.item for one in components])),
        rest=float(np.mean([one.rest for one in components])),
    )
