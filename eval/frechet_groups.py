"""Fréchet distances of many subsets or resamples of one set of clips, from sums that are made once.

Shapes: n frames of an embedding, d its width, r coordinates, G groups of clips, W subsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .gaussian_stats import GaussianStats
from .symmetric import eigenvalues, positive_factor

BATCH_ELEMENTS = 1 << 22
"""Elements of the covariances that are decomposed at once."""
MAX_ELEMENTS = 1 << 26
"""Elements of all groups' sums together, 512 MiB; `fitting_groups` keeps to it."""
MIN_GROUPS = 20


def fitting_groups(num_groups: int, width: int) -> int:
    """At most so many of `num_groups` that their sums fit into memory, but not fewer than `MIN_GROUPS`."""
    return min(num_groups, max(MIN_GROUPS, MAX_ELEMENTS // width**2))


class GroupedMoments:
    """Moments of groups of clips, in coordinates that leave the Fréchet distance one eigendecomposition.

    With Σ_r = FᵀF of the reference, tr √(Σ_r Σ) is the sum of the roots of the eigenvalues of FΣFᵀ, and that
    is the covariance of y = Fx. So the frames are multiplied by F once. The covariance of a subset is then a
    weighted sum of those of its groups, whatever the number of subsets.
    """

    def __init__(self, reference: GaussianStats, clips: Sequence[np.ndarray], groups: np.ndarray) -> None:
        """`clips` are embeddings [n_i, d], `groups` [N] the group of each, 0 … G − 1.

        Raises `ValueError` if the widths differ or the reference has fewer than two frames.
        """
        order = np.argsort(groups, kind="stable")
        frames = np.concatenate([clips[clip] for clip in order]).astype(np.float64)
        if frames.shape[1] != len(reference.mean):
            raise ValueError(
                f"embeddings of width {frames.shape[1]} cannot be compared with embeddings of width"
                f" {len(reference.mean)}"
            )
        mean = frames.mean(axis=0)
        frames -= mean
        self._offset = mean - reference.mean
        self._reference_variance = reference.variance()
        self._factor = _coordinates(reference, frames)
        num_groups = int(groups.max()) + 1
        rank, width = self._factor.shape
        self._num = np.bincount(groups, [len(clip) for clip in clips], num_groups)
        self._sum = np.zeros((num_groups, width))
        self._squares = np.zeros(num_groups)
        self._products = np.zeros((num_groups, rank, rank))
        ends = np.cumsum(self._num).astype(int)
        for group, x in enumerate(np.split(frames, ends[:-1])):
            y = x @ self._factor.T
            self._sum[group] = x.sum(axis=0)
            self._squares[group] = np.vdot(x, x)
            self._products[group] = y.T @ y

    def distances(self, weights: np.ndarray) -> np.ndarray:
        """Fréchet distances [W] to the reference of subsets that hold each group `weights` [W, G] times.

        Exact to about 1e-8 of the sets' variance. Raises `ValueError` if a subset has fewer than two frames.
        """
        num = weights @ self._num
        if num.min() < 2:
            raise ValueError(f"a covariance needs at least 2 embedding frames, there are {int(num.min())}")
        mean = (weights @ self._sum) / num[:, None]
        delta = self._offset + mean
        variance = (weights @ self._squares - num * np.square(mean).sum(axis=1)) / (num - 1.0)
        mean_y = mean @ self._factor.T
        rank = len(self._factor)
        batch = max(1, BATCH_ELEMENTS // max(1, rank**2))
        products = self._products.reshape(len(self._num), -1)
        roots = np.zeros(len(weights))
        for start in range(0, len(weights) if rank else 0, batch):
            part = slice(start, start + batch)
            covariances = (weights[part] @ products).reshape(-1, rank, rank)
            covariances -= (num[part, None] * mean_y[part])[:, :, None] * mean_y[part, None, :]
            covariances /= num[part, None, None] - 1.0
            roots[part] = _sums_of_roots(covariances)
        distances = np.square(delta).sum(axis=1) + variance + self._reference_variance - 2.0 * roots
        positive: np.ndarray = np.maximum(distances, 0.0)
        return positive


def _coordinates(reference: GaussianStats, frames: np.ndarray) -> np.ndarray:
    """F [r, d] with FᵀF = Σ_r in all directions in which the centred `frames` [n, d] vary.

    Fewer frames than dimensions span a subspace only, and the reference is projected onto it: then r < n.
    """
    factor: np.ndarray = reference.factor / np.sqrt(reference.num - 1)
    if len(frames) > frames.shape[1]:
        return factor
    basis = np.linalg.qr(frames.T)[0]  # [d, n]
    seen = factor @ basis
    projected: np.ndarray = positive_factor(seen.T @ seen) @ basis.T
    return projected


def _sums_of_roots(covariances: np.ndarray) -> np.ndarray:
    """Σ √λ over the eigenvalues λ of each of `covariances` [W, r, r], without those within rounding of 0."""
    values = eigenvalues(covariances)
    rounding = covariances.shape[-1] * np.finfo(np.float64).eps * np.maximum(values[:, -1:], 0.0)
    roots: np.ndarray = np.sqrt(np.where(values > rounding, values, 0.0)).sum(axis=-1)
    return roots
