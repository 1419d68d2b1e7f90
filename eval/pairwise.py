"""Distances between all frames of two sets, block by block, so that memory does not grow with the sets.

Shapes: n and m frames, d their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

BLOCK = 2048
"""Frames of each set in one block: 32 MiB of distances."""


@dataclass(frozen=True)
class Block:
    """Squared distances of some frames of one set to some frames of another."""

    rows: slice
    columns: slice
    squared: torch.Tensor  # [rows, columns] float64, exact but for `rounding`
    rounding: torch.Tensor  # [rows, columns] float64: what may be the error of each


def as_frames(clips: Sequence[np.ndarray], what: str) -> np.ndarray:
    """All frames [n, d] float64 of `clips` [n_i, d].

    Raises `ValueError`, which names the set as `what`, if a clip is not of that shape or is not finite.
    """
    for index, clip in enumerate(clips):
        if clip.ndim != 2 or clip.shape[1] == 0 or clip.shape[1] != clips[0].shape[1]:
            raise ValueError(
                f"clip {index} of the {what} set has embeddings of the shape {list(clip.shape)},"
                " and all must be [frames, width] of one width"
            )
        if not np.isfinite(clip).all():
            raise ValueError(f"clip {index} of the {what} set has embedding values that are not finite")
    if not clips:
        raise ValueError(f"the {what} set has no clips")
    return np.concatenate(clips).astype(np.float64)


def distance_blocks(x: np.ndarray, y: np.ndarray) -> Iterator[Block]:
    """All squared Euclidean distances between `x` [n, d] and `y` [m, d], in blocks, row after row.

    They come from inner products of the frames less the mean of `y`, which is far faster than differences
    and, for frames far apart, as exact.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"embeddings of width {x.shape[1]} cannot be compared with embeddings of width {y.shape[1]}"
        )
    centre = y.mean(axis=0)
    rows, columns = torch.from_numpy(x - centre), torch.from_numpy(y - centre)
    row_norms, column_norms = rows.square().sum(dim=1), columns.square().sum(dim=1)
    for start in range(0, len(x), BLOCK):
        part = slice(start, min(start + BLOCK, len(x)))
        for begin in range(0, len(y), BLOCK):
            across = slice(begin, min(begin + BLOCK, len(y)))
            norms = row_norms[part, None] + column_norms[None, across]
            squared = (norms - 2.0 * (rows[part] @ columns[across].mT)).clamp(min=0.0)
            yield Block(part, across, squared, norms * (x.shape[1] ** 0.5 * 4e-16))
