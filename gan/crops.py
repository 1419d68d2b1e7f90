"""Crops of stored clips: the codec's latents, which are samples as they are for all but Musika.

Shapes: B batch, D latent width of the codec.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..tokenize.store import TokenSplit

Crops = Sequence[tuple[int, int]]
"""Clips of a split by number, and the frame that each is read from."""


def read_latents(split: TokenSplit, latent_dim: int, num_frames: int, crops: Crops) -> Tensor:
    """`[B, D, num_frames]` of some crops; zeros, which are silence for samples, after a clip's end."""
    latents = torch.zeros(len(crops), latent_dim, num_frames)
    for row, (clip, start) in enumerate(crops):
        found = split.latents(clip, start, num_frames)
        latents[row, :, : found.shape[1]] = torch.from_numpy(found)
    return latents


def some_clips(split: TokenSplit, num_clips: int) -> list[int]:
    """Clips from all over the split, all where there are no more; the same ones every time."""
    chosen = np.linspace(0, len(split) - 1, min(len(split), num_clips)).round()
    return [int(clip) for clip in chosen]
