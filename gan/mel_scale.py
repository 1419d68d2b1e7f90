"""Spreading a spectrum's bins on the mel scale, and gathering them again.

Shapes: F bins.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """The HTK mel scale: 1127 ln(1 + f / 700)."""
    return 1127.0 * torch.log1p(hertz / 700.0)


def mel_to_hertz(mels: Tensor) -> Tensor:
    """Undo `hertz_to_mel`."""
    return 700.0 * torch.expm1(mels / 1127.0)


def spreading(num_bins: int, bin_hz: float, num_bands: int | None = None) -> Tensor:
    """Weights `[bands, bins]` float32, each row of which sums to 1: what a band holds of each bin. By default
    there are as many bands as bins.

    Bands are equally spaced in mel from 0 Hz to the highest bin. Where they are farther apart than bins, a
    band is a triangle that ends at its neighbours, as in GANSynth (arXiv:1902.08710). Where bins are farther
    apart, such triangles hold one bin or none, and most bands nothing: there a band is the nearest bin, so
    that low bins repeat and come back exactly.
    """
    bins = torch.arange(num_bins, dtype=torch.float64)
    top = hertz_to_mel(bins[-1] * bin_hz)
    bands = mel_to_hertz(torch.linspace(0.0, 1.0, num_bands or num_bins, dtype=torch.float64) * top) / bin_hz
    gaps = torch.diff(bands, prepend=-bands[1:2])
    triangles = (1.0 - (bins - bands[:, None]).abs() / gaps[:, None]).clamp(min=0.0)
    nearest = torch.nn.functional.one_hot(bands.round().long().clamp(max=num_bins - 1), num_bins).double()
    weights = torch.where((gaps < 1.0)[:, None], nearest, triangles)
    return (weights / weights.sum(1, keepdim=True)).float()


def gathering(spread: Tensor) -> Tensor:
    """Weights `[bins, bands]`, each row of which sums to 1: the transpose of `spreading`'s, normalised."""
    weights = spread.T
    return weights / weights.sum(1, keepdim=True)
