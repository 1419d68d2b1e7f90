"""Codebooks that begin as the centres of what they will be asked for.

Shapes: F frames, V codebook size, d width of an entry.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

_NUM_ROUNDS = 10
_FRAMES_AT_ONCE = 16384

LEAST_USE = 0.5
"""A `least_use` by which a codec's codebooks are used evenly, and stand for as much as without."""


@torch.no_grad()
def start_codebooks(
    frames: Tensor, codebook_size: int, *, by_direction: bool = False, least_use: float = 0.0
) -> Tensor:
    """`[V, d]`: Lloyd's k-means of `frames` `[F, d]`, started from random ones of them.

    A centre that no frame is near becomes a random frame, and so does, in all rounds but the last, one that
    is near less than `least_use` times as many as an even use would be: centres leave where there are few
    frames, so the codebook is used more evenly. `by_direction`: near is what has nearly the same direction,
    whatever its length, as where lookups are L2-normalised. Draws from torch's generator.
    """
    fewest = max(1.0, least_use * len(frames) / codebook_size)
    entries = frames[_draw(len(frames), codebook_size)].clone()
    for number in range(_NUM_ROUNDS):
        nearest = _nearest(frames, entries, by_direction)
        counts = torch.bincount(nearest, minlength=codebook_size)
        sums = torch.zeros_like(entries).index_add_(0, nearest, frames)
        entries = sums / counts.clamp(min=1)[:, None]
        poor = counts < (fewest if number < _NUM_ROUNDS - 1 else 1)
        entries[poor] = frames[_draw(len(frames), int(poor.sum()))]
    return entries


def _nearest(frames: Tensor, entries: Tensor, by_direction: bool) -> Tensor:
    """The number of the nearest entry of each frame, `[F]`."""
    parts = torch.split(frames, _FRAMES_AT_ONCE)
    if by_direction:
        directions = normalize(entries).T
        return torch.cat([(part @ directions).argmax(1) for part in parts])
    return torch.cat([torch.cdist(part, entries).argmin(1) for part in parts])


def _draw(num_frames: int, num_wanted: int) -> Tensor:
    """Different frames, as far as there are enough."""
    rounds = -(-num_wanted // num_frames)
    return torch.cat([torch.randperm(num_frames) for _ in range(rounds)] or [torch.zeros(0).long()])[
        :num_wanted
    ]
