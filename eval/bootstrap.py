"""Confidence intervals of scores, by resampling the generated clips.

Clips are drawn, not frames: the frames of one clip are alike, and drawing them one by one would make every
interval too narrow. The reference is taken as it is.

Shapes: N clips, G groups of clips, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
NUM_RESAMPLES = 200
MAX_GROUPS = 100
"""Units that are drawn; with more clips than these, random groups of clips."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float
    level: float = LEVEL
    """Share of such intervals that contain what they are about."""


def group_clips(num_clips: int, seed: int, max_groups: int = MAX_GROUPS) -> np.ndarray:
    """The group [N] of each clip, 0 … G − 1: its own where there are at most `max_groups` clips.

    Otherwise clips are dealt out at random, equally many to each group within one. Sums over groups take
    memory that does not grow with the number of clips.
    """
    if num_clips <= max_groups:
        return np.arange(num_clips)
    groups: np.ndarray = np.random.default_rng(seed).permutation(num_clips) % max_groups
    return groups


def draw_counts(num_groups: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """How often each of G ≥ 2 groups is in each resample, [B, G] float64; each row sums to G.

    A resample of one group alone has no spread, and is drawn again.
    """
    rng = np.random.default_rng(seed)
    share = np.full(num_groups, 1.0 / num_groups)
    counts = rng.multinomial(num_groups, share, size=num_resamples)
    while (alone := counts.max(axis=1) == num_groups).any():
        counts[alone] = rng.multinomial(num_groups, share, size=int(alone.sum()))
    drawn: np.ndarray = counts.astype(np.float64)
    return drawn


def centred_interval(
    value: float,
    resampled: np.ndarray,
    num_groups: int,
    *,
    lowest: float = -np.inf,
    highest: float = np.inf,
    level: float = LEVEL,
) -> Interval | None:
    """The interval of a score `value` from the scores `resampled` [B]; None if there is one group alone.

    The basic bootstrap interval (Davison and Hinkley 1997, sec. 5.2) about the resamples' own mean: it says
    how far `value` may be from its expectation for sets of this size. A resample has fewer different clips
    than the set, so that scores with a bias by size, such as the Fréchet distance, have it twice in a
    resample; subtracting the mean takes that out. Drawing G groups varies less than the G − 1 degrees of
    freedom that they have by √((G − 1)/G), which is put right. Ends beyond what the score can be are moved
    to `lowest` and `highest`.
    """
    if num_groups < 2:
        return None
    deviations = (resampled - resampled.mean()) * np.sqrt(num_groups / (num_groups - 1))
    tail = (1.0 - level) / 2.0
    below, above = np.quantile(deviations, [tail, 1.0 - tail])
    low, high = np.clip([value - above, value - below], lowest, highest)
    return Interval(float(low), float(high), level)


def mean_interval(
    values: np.ndarray, *, seed: int, lowest: float = -np.inf, highest: float = np.inf, level: float = LEVEL
) -> Interval | None:
    """Interval of the mean of one value a clip, `values` [N]; None for fewer than two clips."""
    groups = group_clips(len(values), seed)
    num_groups = int(groups.max(initial=-1)) + 1
    if num_groups < 2:
        return None
    sums = np.bincount(groups, values, num_groups)
    counts = draw_counts(num_groups, seed)
    resampled = counts @ sums / (counts @ np.bincount(groups, minlength=num_groups))
    return centred_interval(
        float(np.mean(values)), resampled, num_groups, lowest=lowest, highest=highest, level=level
    )


def share_interval(num_right: int, num_clips: int, level: float = LEVEL) -> Interval | None:
    """Wilson's interval (J. Am. Stat. Assoc. 22, 1927) of the share num_right/num_clips; None for no clip.

    Resamples of clips that are all right, or all wrong, are all equal: a bootstrap would claim certainty.
    """
    if num_clips == 0:
        return None
    z = float(stats.norm.ppf(0.5 + level / 2.0))
    share = num_right / num_clips
    centre = (share + z * z / (2 * num_clips)) / (1.0 + z * z / num_clips)
    half = (
        z
        / (1.0 + z * z / num_clips)
        * np.sqrt(share * (1.0 - share) / num_clips + z * z / (4.0 * num_clips**2))
    )
    return Interval(max(0.0, float(centre - half)), min(1.0, float(centre + half)), level)
