"""VQCPC-GAN (arXiv:2105.01531): a generator that follows a token a frame, and two discriminators.

From layer to layer the generator's frequencies are doubled, its frames are not: as many tokens as it is told,
so many frames it makes. Noise, labels and numbers do not change in time and stand beside each token. One
discriminator sees a few frames at once and recognises their tokens, the other one sees whole clips and
recognises what else they are told.

Shapes: B batch, C channels, F frequencies, T frames (L of the tokens), V tokens, N width of the noise.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.conditions import Condition, Conditions, GivenConditions
from ...core.errors import UserError
from ...core.schema_gan import VqcpcGanModel
from .blocks import (
    Convolutions,
    EqualConv2d,
    EqualLinear,
    enlarge,
    leaky,
    minibatch_deviation,
    pixel_norm,
    shrink,
)
from .family import ConditionJudge, ConditionVector, Discriminator, Generator, Shape, Verdict


def tokens_among(conditions: Conditions) -> Condition:
    """The one condition that is a sequence: vectors of V numbers, of which one is 1."""
    (tokens,) = (c for c in conditions if c.kind == "sequence")
    return tokens


def lowest_bins(shape: Shape, num_levels: int) -> int:
    """Frequencies of the first layers; raises `UserError` where an image's cannot be halved so often."""
    assert shape.num_bins is not None
    factor: int = 2 ** (num_levels - 1)
    if shape.num_bins % factor:
        raise UserError(
            f"{shape.num_bins} frequencies cannot be halved {num_levels - 1} times, as {num_levels} numbers"
            f" in model.channels ask: choose a window with which they are a multiple of {factor}, or fewer"
        )
    return shape.num_bins // factor


def spread(total: int, num_places: int) -> list[int]:
    """Whole numbers that add up to `total`, as equal as can be, the larger ones last."""
    return [(i + 1) * total // num_places - i * total // num_places for i in range(num_places)]


def tokens_told(tokens: Condition, told: GivenConditions, like: Tensor, num_frames: int) -> Tensor:
    """What clips are told of each frame, `[B, V, L]`, zeros where hidden; L is `num_frames` if nothing is."""
    given = told.get(tokens.name)
    if given is None:
        return like.new_zeros(len(like), tokens.width, num_frames)
    return (given.values * given.mask[:, :, None]).transpose(1, 2).to(like)


class VqcpcGanGenerator(Generator):
    """From noise, what is told of a clip and a token a frame to an image with as many frames."""

    has_any_length: ClassVar[bool] = True

    def __init__(self, section: VqcpcGanModel, shape: Shape, conditions: Conditions) -> None:
        super().__init__()
        widths = section.channels
        self.noise_dim = section.noise_dim
        self.num_frames = shape.num_frames
        self.num_bins = lowest_bins(shape, len(widths))
        self.tokens = tokens_among(conditions)
        self.condition_vector = ConditionVector(conditions)
        width = self.noise_dim + self.condition_vector.dim + self.tokens.width
        self.start = EqualConv2d(width, widths[0] * self.num_bins, (1, 3), extend=True)
        self.levels = nn.ModuleList(
            [
                Convolutions([widths[0], widths[0]], norm=True, extend=True),
                *(Convolutions([a, b, b], norm=True, extend=True) for a, b in pairwise(widths)),
            ]
        )
        self.to_image = EqualConv2d(widths[-1], shape.channels, (1, 1), gain=1.0)

    @property
    def seen_frames(self) -> int:
        """Tokens before a frame, and after it, that the frame depends on."""
        return 1 + sum(len(level.layers) for level in self.levels if isinstance(level, Convolutions))

    def noise_shape(self, num_frames: int) -> tuple[int, ...]:
        """One vector a clip, whatever its length."""
        return (self.noise_dim,)

    def forward(self, noise: Tensor, told: GivenConditions, level: float) -> Tensor:
        """`[B, N]` to `[B, C, F, L]`; without tokens, to as many frames as clips had in training."""
        tokens = tokens_told(self.tokens, told, noise, self.num_frames)
        # Labels and tokens are as long vectors as the noise; weights of scale 1 hear shorter ones late.
        length = math.sqrt(self.noise_dim)
        vector = self.condition_vector(told, like=noise) * length
        clip = torch.cat([pixel_norm(noise), vector], dim=1)[:, :, None]
        given = torch.cat([clip.expand(-1, -1, tokens.shape[2]), tokens * length], dim=1)
        x = self.start(given[:, :, None]).reshape(len(noise), -1, self.num_bins, tokens.shape[2])
        x = pixel_norm(leaky(x))
        for i, convolutions in enumerate(self.levels):
            x = convolutions(x if i == 0 else enlarge(x, (2, 1)))
        return torch.tanh(self.to_image(x).float())


class LocalDiscriminator(nn.Module):
    """Convolutions that see `local_frames` frames: of each window a score and what it says of each token.

    There are as many windows as frames; those at a clip's ends see zeros beyond them.
    """

    def __init__(self, section: VqcpcGanModel, shape: Shape, num_tokens: int) -> None:
        super().__init__()
        widths = section.channels
        self.ends = ((section.local_frames - 1) // 2, section.local_frames // 2)
        # Wide kernels stand where there are few frequencies, and cost the least.
        *high, lowest = spread(section.local_frames - 1, len(widths))
        self.from_image = EqualConv2d(shape.channels, widths[-1], (1, 1))
        self.levels = nn.ModuleList(
            EqualConv2d(b, a, (3, 1 + more), pad_time=False)
            for (a, b), more in zip(reversed(list(pairwise(widths))), high, strict=True)
        )
        joined = widths[0] * lowest_bins(shape, len(widths))
        self.joined = EqualConv2d(joined, widths[0], (1, 1 + lowest), pad_time=False)
        self.opinions = EqualConv2d(widths[0], 1 + num_tokens, (1, 1), gain=1.0)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, F, T]` to scores `[B, T]` and opinions `[B, V, T]`."""
        x = leaky(self.from_image(F.pad(image, self.ends)))
        for level in self.levels:
            x = shrink(leaky(level(x)), (2, 1))
        x = leaky(self.joined(x.flatten(1, 2)[:, :, None]))
        opinions = self.opinions(x)[:, :, 0]
        return opinions[:, 0], opinions[:, 1:]


class GlobalDiscriminator(nn.Module):
    """A score of a whole clip, and perhaps heads for its labels and numbers.

    Frames are halved with the frequencies as long as their number is even.
    """

    def __init__(self, section: VqcpcGanModel, shape: Shape, conditions: Conditions) -> None:
        super().__init__()
        widths = section.channels
        self.of_told = ConditionJudge(conditions, section.conditioned_by)
        self.from_image = EqualConv2d(shape.channels, widths[-1], (1, 1))
        self.levels = nn.ModuleList(
            Convolutions([b, b, a], norm=False) for a, b in reversed(list(pairwise(widths)))
        )
        num_frames = shape.num_frames
        self.factors: list[tuple[int, int]] = []
        for _ in self.levels:
            self.factors.append((2, 1 if num_frames % 2 else 2))
            num_frames //= self.factors[-1][1]
        self.last = Convolutions([widths[0] + 1, widths[0]], norm=False)
        joined = widths[0] * lowest_bins(shape, len(widths)) * num_frames
        self.joined = EqualLinear(joined, widths[0])
        self.opinions = EqualLinear(widths[0], 1 + self.of_told.dim, gain=1.0)

    def forward(self, image: Tensor, told: GivenConditions) -> tuple[Tensor, dict[str, Tensor]]:
        """`[B, C, F, T]`, T as in training, to scores `[B]` and heads."""
        x = leaky(self.from_image(image))
        for level, factor in zip(self.levels, self.factors, strict=True):
            x = shrink(level(x), factor)
        x = self.last(minibatch_deviation(x))
        opinions = self.opinions(leaky(self.joined(x.flatten(1))))
        return self.of_told.verdict(opinions[:, 0], opinions[:, 1:], told)


class VqcpcGanDiscriminator(Discriminator):
    """Both discriminators: scores of the local one `[B, T]`, then of the global one `[B]`."""

    def __init__(self, section: VqcpcGanModel, shape: Shape, conditions: Conditions) -> None:
        super().__init__()
        self.tokens = tokens_among(conditions)
        self.conditioned_by = section.conditioned_by
        self.of_windows = LocalDiscriminator(section, shape, self.tokens.width)
        self.of_clips = GlobalDiscriminator(section, shape, conditions)

    def forward(self, image: Tensor, told: GivenConditions, draws: Tensor, level: float) -> Verdict:
        """The verdict on clips of as many frames as in training."""
        of_windows, opinions = self.of_windows(image)
        of_clips, heads = self.of_clips(image, told)
        if self.conditioned_by == "heads":
            return Verdict([of_windows, of_clips], heads | {self.tokens.name: opinions})
        asked = tokens_told(self.tokens, told, opinions, image.shape[-1])
        return Verdict([of_windows + (opinions * asked).sum(1), of_clips], heads)
