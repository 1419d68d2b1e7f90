"""Codebooks that begin as the centres of what they will be asked for.

Shapes: F frames, V codebook size, d width of an entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NUM_ROUNDS = 10


@torch.no_grad()
def start_codebooks(frames: Tensor, codebook_size: int) -> Tensor:
    """`[V, d]`: Lloyd's k-means of `frames` `[F, d]`, started from random ones of them.

    A centre that no frame is near becomes a random frame. Draws from torch's generator.
    """
    entries = frames[_draw(len(frames), codebook_size)].clone()
    for _ in range(_NUM_ROUNDS):
        nearest = torch.cdist(frames, entries).argmin(1)
        counts = torch.bincount(nearest, minlength=codebook_size)
        sums = torch.zeros_like(entries).index_add_(0, nearest, frames)
        entries = sums / counts.clamp(min=1)[:, None]
        empty = counts == 0
        entries[empty] = frames[_draw(len(frames), int(empty.sum()))]
    return entries


def _draw(num_frames: int, num_wanted: int) -> Tensor:
    """Different frames, as far as there are enough."""
    rounds = -(-num_wanted // num_frames)
    return torch.cat([torch.randperm(num_frames) for _ in range(rounds)] or [torch.zeros(0).long()])[
        :num_wanted
    ]
