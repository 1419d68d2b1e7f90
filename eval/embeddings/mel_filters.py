"""Triangular filters on the HTK mel scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hertz_to_mel(hertz: float) -> float:
    """The HTK mel scale: 1127 ln(1 + f / 700)."""
    return 1127.0 * math.log1p(hertz / 700.0)


def htk_mel_filters(num_bins: int, num_mels: int, min_hz: float, max_hz: float, sample_rate: int) -> Tensor:
    """Weights `[num_bins, num_mels]` float64 that turn an FFT's magnitudes into mel bands.

    The bands' edges are equally spaced in mel, and the triangles are straight in mel too, not in hertz, as
    in AudioSet's features (Hershey et al., arXiv:1609.09430). The constant part (bin 0) counts nowhere.
    """
    bins_hz = torch.linspace(0.0, sample_rate / 2, num_bins, dtype=torch.float64)
    bins = 1127.0 * torch.log1p(bins_hz / 700.0)[:, None]
    edges = torch.linspace(hertz_to_mel(min_hz), hertz_to_mel(max_hz), num_mels + 2, dtype=torch.float64)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins - low) / (centre - low)
    falling = (high - bins) / (high - centre)
    filters = torch.minimum(rising, falling).clamp(min=0.0)
    filters[0] = 0.0
    return filters
