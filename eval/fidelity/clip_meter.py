"""How close a decoded clip is to the original, from pieces of both: any length in constant memory.

Shapes: C channels, N samples of a clip, n samples of a piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ...tokenize.fidelity import MelDistance, StftDistance

PIECE_S = 30
"""Seconds of which spectra are compared at once."""

MIN_SAMPLES = 2048
"""Shorter pieces are filled up with silence: the longest window has to fit."""

MIN_ENERGY = 1e-12


@dataclass(frozen=True)
class ClipScores:
    """Of one clip."""

    mel_distance: float
    """`tokenize.fidelity.MelDistance`: mean over pieces of 30 s, each by its length. Lower is better."""
    stft_distance: float
    """`tokenize.fidelity.StftDistance`, likewise."""
    si_sdr_db: float
    """`tokenize.fidelity.si_sdr` of the whole clip, its channels together. Higher is better."""


class ClipMeter:
    """Compares one clip, piece after piece."""

    def __init__(self, sample_rate: int) -> None:
        self._mel = MelDistance(sample_rate)
        self._stft = StftDistance(sample_rate)
        self._num_samples = 0
        self._mel_sum = self._stft_sum = 0.0
        self._sums = np.zeros((2, 1))
        self._products = np.zeros((3, 1))

    def add(self, decoded: np.ndarray, original: np.ndarray) -> None:
        """The next piece of both, `[C, n]`."""
        length = original.shape[1]
        fill = (0, max(0, MIN_SAMPLES - length))
        estimate, reference = (F.pad(torch.from_numpy(x), fill)[None] for x in (decoded, original))
        self._mel_sum += length * float(self._mel(estimate, reference))
        self._stft_sum += length * float(self._stft(estimate, reference))
        self._num_samples += length
        x, y = decoded.astype(np.float64), original.astype(np.float64)
        self._sums = self._sums + np.stack([x.sum(axis=1), y.sum(axis=1)])
        self._products = self._products + np.stack([(a * b).sum(axis=1) for a, b in ((x, x), (x, y), (y, y))])

    def scores(self) -> ClipScores:
        """Of all that was added."""
        num = self._num_samples
        return ClipScores(self._mel_sum / num, self._stft_sum / num, self._si_sdr())

    def _si_sdr(self) -> float:
        """Le Roux et al., arXiv:1811.02508, eq. 5, from sums; the mean of each channel is removed first."""
        (x, y), (xx, xy, yy) = self._sums, self._products
        num = self._num_samples
        energy = max(float((yy - y * y / num).sum()), MIN_ENERGY)
        common = float((xy - x * y / num).sum())
        target = common**2 / energy
        noise = float((xx - x * x / num).sum()) - target
        return 10.0 * math.log10(max(target, MIN_ENERGY) / max(noise, MIN_ENERGY))


def in_pieces(blocks: Iterable[np.ndarray], length: int, num_samples: int) -> Iterator[np.ndarray]:
    """Samples that come in blocks `[C, n]` in pieces `[C, length]`, the last one shorter.

    They are cut, or filled up with silence, to `num_samples` in all.
    """
    piece: np.ndarray | None = None
    filled, left, channels = 0, num_samples, 1
    for block in blocks:
        samples, channels = block, block.shape[0]
        while samples.shape[1] and left:
            if piece is None:
                piece, filled = np.zeros((channels, min(length, left)), np.float32), 0
            taken = min(samples.shape[1], piece.shape[1] - filled)
            piece[:, filled : filled + taken] = samples[:, :taken]
            samples, filled = samples[:, taken:], filled + taken
            if filled == piece.shape[1]:
                yield piece
                left -= filled
                piece = None
    while left:
        if piece is None:
            piece = np.zeros((channels, min(length, left)), np.float32)
        yield piece
        left -= piece.shape[1]
        piece = None
