"""What is particular to classes that have an order, as quantised samples do: first weights, and noise.

A table of unrelated random rows says that neighbouring amplitudes have nothing in common, and a sample-level
model spends its first thousands of steps on finding out that they have. Rows of cosines of the class's
amplitude say it from the start. (In the first 150 steps of a small WaveNet on 180 notes, that took
the loss to 4.9 bits a sample instead of 6.1: `recipes/nsynth-wavenet.yaml`, CPU-sized.)

Shapes: V classes, E width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_PERIODS = 20.0
"""Of a cosine over all classes."""


# Random Fourier features: arXiv:2006.10739, eq. 5, of a number, with random phases.
def ordered_rows(num_classes: int, width: int) -> Tensor:
    """Rows [V, E] of mean square 1 in which near classes are alike; drawn from torch's generator."""
    position = (torch.arange(num_classes) + 0.5) / num_classes
    periods = MAX_PERIODS * torch.rand(width).square()  # slow ones are more frequent than fast ones
    phases = torch.rand(width)
    return math.sqrt(2) * torch.cos(2 * math.pi * (periods * position[:, None] + phases))


# After FFTNet (Jin et al., ICASSP 2018), which is trained on slightly noisy samples.
def with_noise(codes: Tensor, std: float, num_classes: int) -> Tensor:
    """Codes moved by Gaussian noise of `std` classes, rounded; what is no class (special tokens) stays.

    A model that generates sees its own errors, which training never shows it. One that is trained to predict
    the clean sample after noisy ones corrects them instead of adding to them.
    """
    noise = (std * torch.randn(codes.shape, device=codes.device)).round().long()
    moved = (codes + noise).clamp(0, num_classes - 1)
    return torch.where((codes >= 0) & (codes < num_classes), moved, codes)
