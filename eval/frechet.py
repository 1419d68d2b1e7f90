"""Fréchet distance between two sets of embeddings, for sets, for single clips, and for infinitely many clips.

Everything is float64, covariances have ddof = 1, and no matrix square root is taken, so that the distance
is real and not negative whatever the rank of the covariances.

Shapes: n frames of an embedding, d its width, r rows of a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .frechet_groups import GroupedMoments
from .gaussian_stats import GaussianStats, check_same_width
from .symmetric import eigenvalues, eigenvalues_of_product

__all__ = [
    "MIN_CLIPS",
    "FrechetInfinity",
    "GaussianStats",
    "frechet_distance",
    "frechet_distance_infinity",
    "frechet_distance_per_clip",
]

MIN_CLIPS = 8
"""Fewest clips that FAD-infinity is extrapolated from."""

MAX_ROOT_ERROR = 1e-8
"""Bound of the error of the trace term, relative to the sets' variance, up to which speed comes first.

Real errors were below 1e-13 where the bound was 1e-8: it adds up the worst for each eigenvalue.
"""

NUM_BLOCKS = 6
HALVES = ((0, 1, 2), (0, 1, 3), (0, 1, 4))
LEFT_OUT = ((0, 1), (2, 3), (4, 5))
"""Blocks of clips in, and missing from, the subsets that FAD-infinity is extrapolated from."""


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """Squared Fréchet distance of two Gaussians: ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr √(Σ₁Σ₂).

    Dowson and Landau 1982; as a score of audio: Kilgour et al., arXiv:1812.08466. Zero for equal statistics;
    never negative. Raises `ValueError` if either set has
    fewer than two frames or the widths differ.
    """
    check_same_width(a, b)
    delta = a.mean - b.mean
    variance = a.variance() + b.variance()
    degrees = ((a.num - 1) * (b.num - 1)) ** 0.5
    trace_of_root = _trace_of_root(a, b, MAX_ROOT_ERROR * variance * degrees) / degrees
    return float(max(0.0, delta @ delta + variance - 2.0 * trace_of_root))


def _trace_of_root(a: GaussianStats, b: GaussianStats, max_error: float) -> float:
    """tr √(M₁M₂) of the scatter matrices M.

    With M = FᵀF it is the sum of the singular values of F₁F₂ᵀ. The eigenvalues of M₁M₂ are their squares,
    sooner computed, but less exactly where they are small. So those are taken if their error is small enough,
    and the singular values if not.
    """
    roots = _sum_of_roots(_squares(a, b), max_error)
    if roots is None:
        product = torch.from_numpy(a.factor) @ torch.from_numpy(b.factor).mT
        return float(torch.linalg.svdvals(product).sum())
    return roots


def _squares(a: GaussianStats, b: GaussianStats) -> np.ndarray | None:
    """The eigenvalues of M₁M₂ but those that must be zero; None if neither is positive definite."""
    if a.rows is not None and b.rows is not None:
        product = a.rows @ b.rows.T
        return eigenvalues(product @ product.T if len(a.rows) <= len(b.rows) else product.T @ product)
    if a.rows is not None:
        return eigenvalues(a.rows @ b.m2 @ a.rows.T)
    if b.rows is not None:
        return eigenvalues(b.rows @ a.m2 @ b.rows.T)
    found = eigenvalues_of_product(a.m2, b.m2)
    return eigenvalues_of_product(b.m2, a.m2) if found is None else found


def _sum_of_roots(squares: np.ndarray | None, max_error: float) -> float | None:
    """Sum of the square roots of `squares` [r]; None if it may be off by more than `max_error`.

    An eigenvalue λ is off by at most about δ = √r ε λ_max, and its root by δ/(2√λ). One that is not above δ
    may as well be zero, and its root is not known to any digit.
    """
    if squares is None:
        return None
    if len(squares) == 0:
        return 0.0
    delta = len(squares) ** 0.5 * np.finfo(np.float64).eps * float(squares[-1])
    if squares[0] <= delta:
        return None
    roots = np.sqrt(squares)
    return float(roots.sum()) if float((delta / (2.0 * roots)).sum()) <= max_error else None


def frechet_distance_per_clip(clips: Sequence[np.ndarray], reference: GaussianStats) -> list[float | None]:
    """Fréchet distance of each of `clips` ([n_i, d]) alone to `reference`: which clips are odd.

    Gui et al., arXiv:2311.01616, sec. 2.3. The distance depends on the number of frames, so only clips of
    about one length compare. None for a clip with fewer than two frames, which has no covariance.
    """
    stats = (GaussianStats.from_embeddings(clip) for clip in clips)
    return [frechet_distance(item, reference) if item.num >= 2 else None for item in stats]


@dataclass(frozen=True)
class FrechetInfinity:
    """FAD-infinity and the line that it was read from."""

    value: float
    """Where the line meets 1/N = 0. Not a distance: it may be slightly negative."""
    slope: float
    """Bias of the distance, times the number of clips."""
    r2: float
    """Share of the distances' variance that the line explains; 1 where all distances are equal."""
    sizes: list[int]
    """Clips in each subset."""
    distances: list[float]
    """Fréchet distance of each subset to the reference."""


def frechet_distance_infinity(
    reference: GaussianStats, clips: Sequence[np.ndarray], *, seed: int
) -> FrechetInfinity:
    """Fréchet distance of `clips` to `reference`, extrapolated to infinitely many clips.

    The distance of a finite set is too large by about a constant over its size. So it is measured on subsets
    of half to all of the clips, and a line over 1/N is read at 0: Chong and Forsyth, arXiv:1911.07023; for
    audio Gui et al., arXiv:2311.01616. Here the clips are dealt into six blocks, and the subsets are three
    halves with their complements, three times four blocks, and the whole. Together the subsets of one size
    hold each clip equally often, so that to first order it has no influence which clips are in which, as it
    has with subsets drawn at random. Whole clips are drawn, since the frames of one clip are not independent.
    Smaller subsets would leave the range where the bias is linear. The bias that comes from the size of the
    reference stays.

    Args:
        reference: statistics of the reference set.
        clips: embeddings [n_i, d] of each clip.
        seed: of the dealing.

    Raises:
        ValueError: there are fewer than `MIN_CLIPS` clips, or too few frames, or an embedding is malformed.
    """
    if len(clips) < MIN_CLIPS:
        raise ValueError(f"FAD-infinity needs at least {MIN_CLIPS} clips, there are {len(clips)}")
    blocks = np.random.default_rng(seed).permutation(len(clips)) % NUM_BLOCKS
    subsets = _balanced_subsets()
    distances = GroupedMoments(reference, clips, blocks).distances(subsets)
    sizes = subsets @ np.bincount(blocks, minlength=NUM_BLOCKS)
    inverse = 1.0 / sizes
    slope, intercept = np.polyfit(inverse, distances, 1)
    residual = np.square(distances - (intercept + slope * inverse)).sum()
    total = np.square(distances - distances.mean()).sum()
    return FrechetInfinity(
        value=float(intercept),
        slope=float(slope),
        r2=float(1.0 - residual / total) if total > 0.0 else 1.0,
        sizes=sizes.astype(int).tolist(),
        distances=distances.tolist(),
    )


def _balanced_subsets() -> np.ndarray:
    """Which blocks are in which subset, [10, 6] of 0 and 1, from the smallest subsets to the whole."""
    halves = [half for first in HALVES for half in (first, tuple(set(range(NUM_BLOCKS)) - set(first)))]
    two_thirds = [tuple(set(range(NUM_BLOCKS)) - set(pair)) for pair in LEFT_OUT]
    subsets = np.zeros((len(halves) + len(two_thirds) + 1, NUM_BLOCKS))
    for row, blocks in zip(subsets, [*halves, *two_thirds, tuple(range(NUM_BLOCKS))], strict=True):
        row[list(blocks)] = 1.0
    return subsets
