"""How close a decoded signal is to the original, and how well a codec uses its codebooks.

Shapes: B batch, N samples, K codebooks, T frames, V codebook size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, `[B]` from two `[B, N]`.

    Le Roux et al., "SDR – half-baked or well done?", arXiv:1811.02508, eq. 5; means are removed first.
    """
    estimate = estimate - estimate.mean(-1, keepdim=True)
    reference = reference - reference.mean(-1, keepdim=True)
    energy = reference.square().sum(-1, keepdim=True).clamp(min=1e-12)
    target = (estimate * reference).sum(-1, keepdim=True) / energy * reference
    noise = (estimate - target).square().sum(-1).clamp(min=1e-12)
    return 10 * torch.log10(target.square().sum(-1).clamp(min=1e-12) / noise)


@dataclass(frozen=True)
class CodebookUse:
    """How evenly a codec's codes are used."""

    entropy_bits: list[float]
    """Of each codebook."""
    used: list[int]
    """Entries of each codebook that occur at all."""
    efficiency: float
    """Σ entropy / (K · log2 V): the share of the bitrate that carries information."""


def codebook_efficiency(codes: Tensor, codebook_size: int) -> CodebookUse:
    """Entropy and use of each codebook over codes `[B, K, T]`.

    Entropies of few codes are too low: with n codes, at most log2 n bits can be seen.
    """
    entropies, used = [], []
    for k in range(codes.shape[1]):
        counts = torch.bincount(codes[:, k].flatten(), minlength=codebook_size).double()
        share = counts[counts > 0] / counts.sum()
        entropies.append(float(-(share * share.log2()).sum()))
        used.append(int((counts > 0).sum()))
    return CodebookUse(entropies, used, sum(entropies) / (len(entropies) * math.log2(codebook_size)))
