"""Number, mean and scatter of a set of embeddings: all that the Fréchet distance needs to know of it.

Everything is float64, and covariances have ddof = 1.

Shapes: n frames of an embedding, d its width, r rows of a factor.
"""

from __future__ import annotations

from functools import cached_property
from typing import Self

import numpy as np

from .symmetric import positive_factor


class GaussianStats:
    """Number, mean and scatter of a set of embeddings.

    The scatter is the sum M2 [d, d] of the outer products of the deviations from the mean. Fewer frames than
    dimensions leave it without full rank; then `rows` [r, d] with rowsᵀ rows = M2 are kept in its place, and
    no d × d matrix is made, let alone decomposed.

    Pieces of a set can be summed up alone and merged. Neither the pieces nor their order change the result
    beyond rounding (Chan, Golub and LeVeque 1983, the pairwise update).
    """

    num: int
    """Frames summed up."""
    mean: np.ndarray  # [d] float64
    rows: np.ndarray | None  # [r, d] float64 with r < d; None where M2 itself is kept

    def __init__(
        self, num: int, mean: np.ndarray, m2: np.ndarray | None = None, *, rows: np.ndarray | None = None
    ) -> None:
        """Give either `m2` [d, d] or `rows` [r, d]."""
        if (m2 is None) == (rows is None):
            raise ValueError("the scatter of a set is given either by m2 or by rows")
        self.num = num
        self.mean = mean
        self.rows = rows
        if m2 is not None:
            self.m2 = m2

    @classmethod
    def from_embeddings(cls, embeddings: np.ndarray) -> Self:
        """Sum up `embeddings` [n, d] of any float type; `ValueError` if they are not 2-D or not finite."""
        x = np.asarray(embeddings, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"embeddings must have the shape [frames, width], these have {list(x.shape)}")
        if not np.isfinite(x).all():
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(x))} of the {x.size} embedding values are not finite"
            )
        num, width = x.shape
        if num == 0:
            return cls(0, np.zeros(width), rows=np.zeros((0, width)))
        mean = x.mean(axis=0)
        deviations = x - mean
        if num > width:
            return cls(num, mean, deviations.T @ deviations)
        return cls(num, mean, rows=_without_their_sum(deviations))

    @cached_property
    def m2(self) -> np.ndarray:
        """The sum [d, d] of the outer products of the deviations from the mean."""
        assert self.rows is not None
        m2: np.ndarray = self.rows.T @ self.rows
        return m2

    @cached_property
    def m2_trace(self) -> float:
        """Trace of M2: the sum of the squared deviations from the mean."""
        return float(np.trace(self.m2) if self.rows is None else np.square(self.rows).sum())

    def update(self, embeddings: np.ndarray) -> Self:
        """These statistics with `embeddings` [n, d] added; `self` stays as it is."""
        return self.merge(type(self).from_embeddings(embeddings))

    def merge(self, other: GaussianStats) -> Self:
        """The statistics of both sets together; raises `ValueError` if their widths differ."""
        check_same_width(self, other)
        num = self.num + other.num
        if num == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.num / num)
        between = delta * np.sqrt(self.num * other.num / num)
        if self.rows is not None and other.rows is not None:
            rows = np.concatenate([self.rows, other.rows, between[None]])
            if len(rows) < len(mean):
                return type(self)(num, mean, rows=rows)
            return type(self)(num, mean, rows.T @ rows)
        return type(self)(num, mean, self.m2 + other.m2 + np.outer(between, between))

    def covariance(self) -> np.ndarray:
        """Covariance [d, d] with ddof = 1; raises `ValueError` for fewer than two frames."""
        return self.m2 / self._degrees_of_freedom()

    def variance(self) -> float:
        """Trace of the covariance; raises `ValueError` for fewer than two frames."""
        return self.m2_trace / self._degrees_of_freedom()

    @cached_property
    def factor(self) -> np.ndarray:
        """F [r, d] with FᵀF = M2."""
        return positive_factor(self.m2) if self.rows is None else self.rows

    def _degrees_of_freedom(self) -> int:
        if self.num < 2:
            raise ValueError(f"a covariance needs at least 2 embedding frames, there are {self.num}")
        return self.num - 1


def check_same_width(a: GaussianStats, b: GaussianStats) -> None:
    """Raise `ValueError` if the sets cannot be compared."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"embeddings of width {len(a.mean)} cannot be compared with embeddings of width {len(b.mean)}"
        )


def _without_their_sum(deviations: np.ndarray) -> np.ndarray:
    """Rows [n − 1, d] with the same Gram matrix as `deviations` [n, d], whose sum is zero.

    The Householder reflection that takes the direction (1, …, 1)/√n to the first axis moves their sum into
    the first row, which can then be left out. Otherwise each product of two sets would have a singular value
    that is zero but for rounding.
    """
    num = len(deviations)
    if num == 1:
        return deviations[:0]
    normal = np.full(num, 1.0 / np.sqrt(num))
    normal[0] += 1.0
    reflected: np.ndarray = deviations - np.outer(normal, (normal @ deviations) * (2.0 / (normal @ normal)))
    return reflected[1:]
