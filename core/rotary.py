"""Rotary positions: queries and keys turned by angles, so that their product depends on distances alone.

Shapes: B batch, H heads, S steps, Dh width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_frequencies(head_dim: int, device: torch.device) -> Tensor:
    """Angles of a step, from 1 to 1/10000: [Dh/2] float32."""
    return 10000.0 ** -torch.linspace(0, 1, head_dim // 2 + 1, device=device)[:-1]


# RoPE: RoFormer, arXiv:2104.09864, eq. 34, where dimension i of a head is paired with i + Dh/2.
def rotary_tables(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles at `positions` [..., S]: two [..., S, Dh/2] float32.

    Computed when needed: a table of fixed length would bound how long a clip can be.
    """
    angles = positions[..., None] * rotary_frequencies(head_dim, positions.device)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of dimensions of `x` [B, H, S, Dh] by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
