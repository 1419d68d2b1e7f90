"""The progressively growing networks of GANSynth, DrumGAN and DarkGAN.

The plan is that of arXiv:1710.10196, table 2, with images that need not be square. The discriminator is not
told the conditions but has heads that recognise them (arXiv:1610.09585), as GANSynth's does.

Shapes: B batch, C channels, F frequencies, T frames.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...core.conditions import Conditions, GivenConditions
from ...core.errors import UserError
from ...core.schema_gan import ProgressiveSection
from .blocks import (
    Convolutions,
    EqualConv2d,
    EqualLinear,
    enlarge,
    fade,
    leaky,
    minibatch_deviation,
    pixel_norm,
    shrink,
)
from .family import ConditionJudge, ConditionVector, Discriminator, Generator, Shape, Verdict


def lowest_resolution(shape: Shape, num_levels: int) -> tuple[int, int]:
    """Frequencies and frames of level 0; raises `UserError` where an image cannot be halved so often."""
    assert shape.num_bins is not None
    factor = 2 ** (num_levels - 1)
    if shape.num_bins % factor or shape.num_frames % factor:
        raise UserError(
            f"images of {shape.num_bins} frequencies and {shape.num_frames} frames cannot be halved"
            f" {num_levels - 1} times, as {num_levels} numbers in model.channels ask: choose a window, a hop"
            f" and a clip length that make both multiples of {factor}, or fewer channels"
        )
    return shape.num_bins // factor, shape.num_frames // factor


class ProgressiveGenerator(Generator):
    """From a vector of noise and what is told of a clip to an image, one resolution after another."""

    def __init__(self, section: ProgressiveSection, shape: Shape, conditions: Conditions) -> None:
        super().__init__()
        widths = section.channels
        self.num_levels = len(widths)
        self.noise_dim = section.noise_dim
        self.lowest = lowest_resolution(shape, self.num_levels)
        self.condition_vector = ConditionVector(conditions)
        self.start = EqualLinear(
            self.noise_dim + self.condition_vector.dim, widths[0] * math.prod(self.lowest)
        )
        self.levels = nn.ModuleList(
            [
                Convolutions([widths[0], widths[0]], norm=True, extend=True),
                *(Convolutions([a, b, b], norm=True, extend=True) for a, b in pairwise(widths)),
            ]
        )
        self.to_image = nn.ModuleList(EqualConv2d(w, shape.channels, (1, 1), gain=1.0) for w in widths)

    def noise_shape(self, num_frames: int) -> tuple[int, ...]:
        """One vector a clip."""
        return (self.noise_dim,)

    def forward(self, noise: Tensor, told: GivenConditions, level: float) -> Tensor:
        """`[B, noise_dim]` to an image of the size of `level`; only layers run that this level shows."""
        assert 0 <= level <= self.num_levels - 1
        # Noise on a hypersphere: arXiv:1710.10196, app. A.1.
        # A label is as long a vector as the noise, else weights of scale 1 would take long to hear it.
        vector = self.condition_vector(told, like=noise) * math.sqrt(self.noise_dim)
        given = torch.cat([pixel_norm(noise), vector], dim=1)
        x = pixel_norm(leaky(self.start(given).reshape(len(noise), -1, *self.lowest)))
        highest = math.ceil(level)
        before = x
        for i in range(highest + 1):
            before, x = x, self.levels[i](x if i == 0 else enlarge(x))
        return fade(level, lambda: enlarge(self._shown(before, highest - 1)), self._shown(x, highest))

    def _shown(self, x: Tensor, i: int) -> Tensor:
        return torch.tanh(self.to_image[i](x).float())


class ProgressiveDiscriminator(Discriminator):
    """From an image of any level to one score a clip, and to heads for what a clip is told."""

    def __init__(self, section: ProgressiveSection, shape: Shape, conditions: Conditions) -> None:
        super().__init__()
        widths = section.channels
        self.num_levels = len(widths)
        self.lowest = lowest_resolution(shape, self.num_levels)
        self.of_told = ConditionJudge(conditions, section.conditioned_by)
        self.from_image = nn.ModuleList(EqualConv2d(shape.channels, w, (1, 1)) for w in widths)
        self.levels = nn.ModuleList(
            [
                Convolutions([widths[0] + 1, widths[0]], norm=False),
                *(Convolutions([b, b, a], norm=False) for a, b in pairwise(widths)),
            ]
        )
        self.joined = EqualLinear(widths[0] * math.prod(self.lowest), widths[0])
        self.opinions = EqualLinear(widths[0], 1 + self.of_told.dim, gain=1.0)

    def forward(self, image: Tensor, told: GivenConditions, draws: Tensor, level: float) -> Verdict:
        """Scores `[B]` and heads for all labels and numbers; only layers run that this level shows."""
        highest = math.ceil(level)
        assert image.shape[-2:] == tuple(n * 2**highest for n in self.lowest)
        x = leaky(self.from_image[highest](image))
        for i in range(highest, 0, -1):
            x = shrink(self.levels[i](x))
            if i == highest:
                x = fade(level, lambda: leaky(self.from_image[highest - 1](shrink(image))), x)
        x = self.levels[0](minibatch_deviation(x))
        opinions = self.opinions(leaky(self.joined(x.flatten(1))))
        score, heads = self.of_told.verdict(opinions[:, 0], opinions[:, 1:], told)
        return Verdict([score], heads)

    def at_level(self, image: Tensor, level: float) -> Tensor:
        """A whole image as a generator at `level` would show it."""
        factor = 2 ** (self.num_levels - 1 - math.ceil(level))
        at_highest = shrink(image, (factor, factor))
        return fade(level, lambda: enlarge(shrink(at_highest)), at_highest)
