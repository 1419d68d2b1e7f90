"""Mel magnitudes: short-time spectra through triangular filters on the HTK scale.

Shapes: B clips, N samples, n samples of a window, F windows, M mel bands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOWS_AT_ONCE = 128
"""Windows whose spectra are held at once: they and what is made of them stay in a core's cache."""


def mel_magnitudes(samples: Tensor, window: Tensor, hop: int, filters: Tensor) -> Tensor:
    """Samples `[B, N]` to the mel bands `[B, F, M]` of their windows' magnitudes.

    Windows `[n]` start every `hop` samples, and are filled up with zeros to the FFT that `filters`
    `[FFT / 2 + 1, M]` are for. A clip's values do not depend on the others.
    """
    fft = 2 * (len(filters) - 1)
    windows = samples.unfold(-1, len(window), hop)
    bands = samples.new_empty(*windows.shape[:2], filters.shape[1])
    for clip, into in zip(windows, bands, strict=True):
        for piece, part in zip(clip.split(WINDOWS_AT_ONCE), into.split(WINDOWS_AT_ONCE), strict=True):
            spectra = torch.fft.rfft(piece * window, n=fft)
            # `abs` guards against overflow and takes three times as long.
            magnitudes = (spectra.real.square() + spectra.imag.square()).sqrt_()
            torch.mm(magnitudes, filters, out=part)
    return bands


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
