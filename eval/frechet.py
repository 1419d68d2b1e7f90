"""Fréchet distance between two sets of embeddings, and its extrapolation to infinitely many clips.

Everything is float64, covariances have ddof = 1, and no matrix square root is taken, so that the distance
is real and not negative whatever the rank of the covariances.

Shapes: n frames of an embedding, d its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

MIN_CLIPS = 8
"""Fewest clips that FAD-infinity is extrapolated from."""


@dataclass(frozen=True, eq=False)
class GaussianStats:
    """Number, mean and scatter of a set of embeddings: all that the Fréchet distance needs of it.

    Pieces of a set can be summed up alone and merged. Neither the pieces nor their order change the result
    beyond rounding (Chan, Golub and LeVeque 1983, the pairwise update).
    """

    num: int
    mean: np.ndarray  # [d] float64
    m2: np.ndarray  # [d, d] float64: sum of the outer products of the deviations from the mean

    @classmethod
    def from_embeddings(cls, embeddings: np.ndarray) -> Self:
        """Sum up `embeddings` [n, d]; raises `ValueError` if they are not 2-D or not finite."""
        x = np.asarray(embeddings, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"embeddings must have the shape [frames, width], these have {list(x.shape)}")
        if not np.isfinite(x).all():
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(x))} of the {x.size} embedding values are not finite"
            )
        if len(x) == 0:
            return cls(0, np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1])))
        mean = x.mean(axis=0)
        deviations = x - mean
        return cls(len(x), mean, deviations.T @ deviations)

    def update(self, embeddings: np.ndarray) -> Self:
        """These statistics with `embeddings` [n, d] added; `self` stays as it is."""
        return self.merge(type(self).from_embeddings(embeddings))

    def merge(self, other: GaussianStats) -> Self:
        """The statistics of both sets together; raises `ValueError` if their widths differ."""
        _check_same_width(self, other)
        num = self.num + other.num
        if num == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.num / num)
        between = np.outer(delta, delta) * (self.num * other.num / num)
        return type(self)(num, mean, self.m2 + other.m2 + between)

    def covariance(self) -> np.ndarray:
        """Covariance [d, d] with ddof = 1; raises `ValueError` for fewer than two frames."""
        if self.num < 2:
            raise ValueError(f"a covariance needs at least 2 embedding frames, there are {self.num}")
        return self.m2 / (self.num - 1)

    @cached_property
    def factor(self) -> np.ndarray:
        """L [d, rank] with L Lᵀ = covariance.

        Eigenvalues that are zero within rounding are left out. Kept, they would enter the distance by their
        square roots, and turn errors of 1e-16 into errors of 1e-8 in each direction that is missing.
        """
        eigenvalues, eigenvectors = np.linalg.eigh(self.covariance())
        rounding = len(self.mean) * np.finfo(np.float64).eps * max(float(eigenvalues[-1]), 0.0)
        kept = eigenvalues > rounding
        factor: np.ndarray = eigenvectors[:, kept] * np.sqrt(eigenvalues[kept])
        return factor


def _check_same_width(a: GaussianStats, b: GaussianStats) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"embeddings of width {len(a.mean)} cannot be compared with embeddings of width {len(b.mean)}"
        )


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """Squared Fréchet distance of two Gaussians: ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr √(Σ₁Σ₂).

    Dowson and Landau 1982; as a score of audio: Kilgour et al., arXiv:1812.08466. With Σ = L Lᵀ the last
    trace is the sum of the singular values of L₁ᵀ L₂, which is real by construction and exact for
    covariances of any rank. Zero for equal statistics; never negative. Raises `ValueError` if either set has
    fewer than two frames or the widths differ.
    """
    _check_same_width(a, b)
    delta = a.mean - b.mean
    trace_sqrt = float(np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum())
    distance = delta @ delta + np.trace(a.covariance()) + np.trace(b.covariance()) - 2.0 * trace_sqrt
    return max(0.0, float(distance))


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
    reference: GaussianStats, clips: Sequence[np.ndarray], *, seed: int, num_subsets: int = 15
) -> FrechetInfinity:
    """Fréchet distance of `clips` to `reference`, extrapolated to infinitely many clips.

    The distance of a finite set is too large by about a constant over its size. So it is measured on subsets
    of half to all of the clips, evenly spaced in their number and drawn without replacement, and a line over
    1/N is read at 0: Chong and Forsyth, arXiv:1911.07023; for audio Gui et al., arXiv:2311.01616. Whole clips
    are drawn, since the frames of one clip are not independent. Smaller subsets would leave the range where
    the bias is linear (with a quarter of the clips the intercept came out 2–3 times further below 0). The
    bias that comes from the size of the reference stays.

    Args:
        reference: statistics of the reference set.
        clips: embeddings [n_i, d] of each clip.
        seed: of the subsets.
        num_subsets: points that the line is fitted to.

    Raises:
        ValueError: there are fewer than `MIN_CLIPS` clips, or an embedding is malformed.
    """
    if len(clips) < MIN_CLIPS:
        raise ValueError(f"FAD-infinity needs at least {MIN_CLIPS} clips, there are {len(clips)}")
    generator = np.random.default_rng(seed)
    sizes = np.linspace(len(clips) // 2, len(clips), num_subsets).round().astype(int)
    distances = np.array(
        [
            frechet_distance(
                GaussianStats.from_embeddings(
                    np.concatenate([clips[i] for i in np.sort(generator.permutation(len(clips))[:size])])
                ),
                reference,
            )
            for size in sizes
        ]
    )
    inverse = 1.0 / sizes
    slope, intercept = np.polyfit(inverse, distances, 1)
    residual = np.square(distances - (intercept + slope * inverse)).sum()
    total = np.square(distances - distances.mean()).sum()
    return FrechetInfinity(
        value=float(intercept),
        slope=float(slope),
        r2=float(1.0 - residual / total) if total > 0.0 else 1.0,
        sizes=sizes.tolist(),
        distances=distances.tolist(),
    )
