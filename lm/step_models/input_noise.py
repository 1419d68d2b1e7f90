"""Noise on the samples that a model sees in training, so that it learns to correct what it will get wrong.

A model that generates sees its own errors, which training never shows it. One that is trained to predict the
clean sample after noisy ones corrects them instead of adding to them, and loses what only clean samples would
have told it. A model that is told how much noise there is loses nothing: it is trained on everything between
none and the most, and is told in generation how far to trust what it hears of itself.

Shapes: B batch, T samples, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ..language_model import LanguageModel


# After FFTNet (Jin et al., ICASSP 2018), which is trained on slightly noisy samples.
def with_noise(codes: Tensor, std: float | Tensor, num_classes: int) -> Tensor:
    """Codes moved by Gaussian noise of `std` classes, rounded; what is no class (special tokens) stays."""
    noise = (std * torch.randn(codes.shape, device=codes.device)).round().long()
    moved = (codes + noise).clamp(0, num_classes - 1)
    return torch.where((codes >= 0) & (codes < num_classes), moved, codes)


# After the conditioning augmentation of cascaded diffusion (arXiv:2106.15282): noise of a random size, told.
class InputNoise(nn.Module):
    """How much noise rows get, and what says so to the model."""

    def __init__(self, most: float, is_told: bool, width: int) -> None:
        """`most`: standard deviation in classes; all rows get it, unless the model is told how much it is."""
        super().__init__()
        if is_told and not most:
            raise UserError("tell_noise needs noise to tell of: give input_noise, such as 8")
        self.most = most
        self.teller = (
            nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width)) if is_told else None
        )
        self.assumed = most / 2
        """What the model is told in generation, where nobody knows how wrong it is."""

    def draw(self, num_rows: int, device: torch.device) -> Tensor:
        """Levels [B] in classes. Of those that are told, half are below a quarter of the most.

        What is lost at a level grows fastest near none.
        """
        if self.teller is None:
            return torch.full((num_rows,), self.most, device=device)
        return self.most * torch.rand(num_rows, device=device).square()

    def assumed_levels(self, num_rows: int, device: torch.device) -> Tensor:
        """Levels [R] of what the model hears of itself."""
        return torch.full((num_rows,), self.assumed, device=device)

    def join(self, added: Tensor | None, levels: Tensor | None) -> Tensor | None:
        """What conditions add [B, D] (None: there are none), and what the levels [B] do if they are told."""
        if self.teller is None:
            return added
        assert levels is not None
        # Evenly spaced in octaves, but below one class, where most is rounded away.
        octaves = torch.log1p(levels) / math.log1p(self.most)
        told: Tensor = self.teller(octaves[:, None])
        return told if added is None else added + told


def assume_noise(lm: LanguageModel, level: float) -> None:
    """Let `lm` take its own samples for so noisy (in classes) in generation from now on.

    Raises `UserError` for a model that is not told of noise, and for a level beyond what it was trained with.
    """
    noise = getattr(lm, "noise", None)
    if not isinstance(noise, InputNoise) or noise.teller is None:
        raise UserError(
            "assumed_noise is for sample-level models that were trained with tell_noise: leave it out"
        )
    if not 0 <= level <= noise.most:
        raise UserError(
            f"assumed_noise {level:g} must be between 0 and {noise.most:g}, the most noise that this model"
            " was trained with (input_noise)"
        )
    noise.assumed = level
