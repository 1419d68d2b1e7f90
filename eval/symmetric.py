"""Eigenvalues of symmetric matrices, by whichever of two libraries is sooner done.

numpy and scipy bring OpenBLAS, torch brings MKL. Up to about a thousand dimensions OpenBLAS was as fast or
faster, beyond MKL was, by far. Two libraries' threads in turn on the same cores slow both down, so that all
other products here are numpy's.

Shapes: W matrices of a batch, r rows, d width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

WIDE = 1024
"""Rows above which torch does the work."""
NUM_BLOCKS = 4
"""Blocks of a triangular matrix, beyond whose diagonal nothing is multiplied."""


def eigenvalues(matrices: np.ndarray) -> np.ndarray:
    """Eigenvalues [..., r] of symmetric `matrices` [..., r, r], in ascending order."""
    if matrices.shape[-1] <= WIDE:
        found: np.ndarray = np.linalg.eigvalsh(matrices)
    else:
        found = torch.linalg.eigvalsh(torch.from_numpy(matrices)).numpy()
    return found


def eigenvalues_of_product(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """Eigenvalues [d] of A B, in ascending order; None if B is not positive definite within rounding.

    With B = LLᵀ they are those of LᵀAL. `a` and `b` [d, d] are symmetric and not negative.
    """
    if len(a) <= WIDE:
        # LAPACK's own for this product (sygst) was half again as slow.
        try:
            triangular = np.linalg.cholesky(b)
        except np.linalg.LinAlgError:
            return None
        return eigenvalues(_lower_half_of_product(triangular, a, np.matmul))
    lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(b))
    if int(failed):
        return None
    return eigenvalues(_lower_half_of_product(lower.numpy(), a, _product_by_torch))


def _product_by_torch(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product: np.ndarray = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return product


def _lower_half_of_product(
    lower: np.ndarray, a: np.ndarray, multiply: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The lower half of LᵀAL [d, d] of `lower` L and symmetric `a`; zeros above the blocks of the diagonal.

    That half is all that eigenvalues are read from. Without products with L's own zeros it takes half of the
    operations.
    """
    step = -(-len(a) // NUM_BLOCKS)
    blocks = [slice(first, first + step) for first in range(0, len(a), step)]
    right = np.empty_like(a)
    for block in blocks:
        right[:, block] = multiply(a[:, block.start :], lower[block.start :, block])
    product = np.zeros_like(a)
    for block in blocks:
        product[block, : block.stop] = multiply(
            lower[block.start :, block].T, right[block.start :, : block.stop]
        )
    return product


def positive_factor(matrix: np.ndarray) -> np.ndarray:
    """F [r, d] with FᵀF = `matrix` [d, d], which is symmetric and not negative.

    Triangular where the matrix has full rank. Otherwise eigenvalues that are zero within rounding are left
    out. Kept, they would enter a Fréchet distance by their square roots, and turn errors of 1e-16 into errors
    of 1e-8 in each direction that is missing.
    """
    try:
        triangular: np.ndarray = np.linalg.cholesky(matrix).T
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix)
        kept = values > len(matrix) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
        factor: np.ndarray = (vectors[:, kept] * np.sqrt(values[kept])).T
        return factor
    return triangular
