"""What a family of adversarial models is: a generator and a discriminator over images of sound.

An *image* is what a representation (`gan/representation.py`) makes of audio: samples `[B, 1, N]`, a
spectrogram `[B, C, F, T]`, or a codec's latents `[B, D, T]`. The trainer (`gan/train.py`) knows no more of a
family than what stands here; `gan/build.py` lists the families.

Shapes: B batch, C channels, F frequencies, T frames, N samples, L states of a sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.conditions import HIDDEN, Conditions, GivenConditions
from ...core.schema_gan import ConditionedBy


@dataclass(frozen=True)
class Shape:
    """Of an image, without the batch."""

    channels: int
    num_bins: int | None
    """Frequencies; None where an image has no such axis."""
    num_frames: int
    """Frames or samples of the clips that a model is trained on."""

    def of(self, num_frames: int | None = None) -> tuple[int, ...]:
        """`[C, F, T]` or `[C, T]`, with another number of frames if one is given."""
        frames = self.num_frames if num_frames is None else num_frames
        return (self.channels, frames) if self.num_bins is None else (self.channels, self.num_bins, frames)


class Generator(nn.Module, ABC):
    """From noise, and what it is told, to an image."""

    noise_kind: ClassVar[Literal["normal", "uniform"]] = "normal"
    """How each number of the noise is distributed: N(0, 1), or evenly between -1 and 1."""

    has_any_length: ClassVar[bool] = False
    """Whether images may have more frames than those of training."""

    num_levels: int = 1
    """Resolutions that the network grows through, 1 for networks that do not grow."""

    @abstractmethod
    def noise_shape(self, num_frames: int) -> tuple[int, ...]:
        """The noise of one clip of so many frames, without the batch."""

    @abstractmethod
    def forward(self, noise: Tensor, told: GivenConditions, level: float) -> Tensor:
        """An image `[B, C, F, T]` or `[B, C, T]`, about within ±1.

        `level` from 0 to `num_levels - 1` says how far a growing network has grown: at 1.25 it shows
        resolution 2 by a quarter and resolution 1, enlarged, by three quarters, at the size of resolution 2.
        Networks that do not grow pass it over.
        """


@dataclass
class Verdict:
    """What a discriminator says of a batch."""

    scores: list[Tensor]
    """Of each discriminator `[B]`, or `[B, n]` where it judges n places: the higher, the more real."""
    heads: dict[str, Tensor] = field(default_factory=dict)
    """By condition, what it recognises, where it has heads for that: of a label logits `[B, V]` over its
    values; of a number `[B]`, a logit where soft labels are told and a value where descriptors are; of a
    sequence logits `[B, V, L]`."""


class Discriminator(nn.Module, ABC):
    """From an image to a verdict."""

    num_draws: int = 0
    """Random numbers that it needs for each clip."""

    @abstractmethod
    def forward(self, image: Tensor, told: GivenConditions, draws: Tensor, level: float) -> Verdict:
        """The verdict on an image of the size that belongs to `level`.

        `told` is what the clips are told, for discriminators that see it (those with heads need not).
        `draws` `[B, num_draws]`, evenly between 0 and 1, decide all that is random in it. All clips are real
        ones, or made ones, or mixtures, so that it may compare them with each other.
        """

    def at_level(self, image: Tensor, level: float) -> Tensor:
        """What a whole image looks like to a network that has grown to `level`; the image itself otherwise.

        At 1.25: at the size of resolution 2, a quarter of it as it is there, and three quarters as it is at
        resolution 1, enlarged (arXiv:1710.10196, fig. 2).
        """
        return image


class ConditionVector(nn.Module):
    """Labels and numbers as one vector a clip: a one of as many as there are values, and numbers by their
    maximum. Hidden ones are zeros. It has no weights."""

    def __init__(self, conditions: Conditions) -> None:
        super().__init__()
        self.conditions = [c for c in conditions if c.kind in ("label", "number")]
        self.widths = [len(c.values) if c.kind == "label" else 1 for c in self.conditions]
        self.dim = sum(self.widths)

    def forward(self, told: GivenConditions, like: Tensor) -> Tensor:
        """`[B, dim]` for the B clips of `like`, in its number format and on its device."""
        parts = [
            self._part(told, name=c.name, width=width, like=like)
            for c, width in zip(self.conditions, self.widths, strict=True)
        ]
        return torch.cat([like.new_zeros(len(like), 0), *parts], dim=1)

    def _part(self, told: GivenConditions, *, name: str, width: int, like: Tensor) -> Tensor:
        given = told.get(name)
        if given is None:
            return like.new_zeros(len(like), width)
        condition = next(c for c in self.conditions if c.name == name)
        if condition.kind == "number":
            assert condition.maximum is not None
            return (given.values * given.mask / condition.maximum).to(like)
        rows = torch.where(given.mask, given.values, HIDDEN)[:, 0]
        return (rows[:, None] == torch.arange(HIDDEN + 1, condition.num_rows, device=rows.device)).to(like)


class ConditionJudge(ConditionVector):
    """What a discriminator makes of one layer's opinions on what clips are told.

    That layer is its heads. By projection it is so for numbers only, and what it says of a label that a
    clip is told adds to its score: the inner product of the clip's features and a vector for that label
    (arXiv:1802.05637, eq. 3).
    """

    def __init__(self, conditions: Conditions, by: ConditionedBy) -> None:
        super().__init__(conditions)
        self.by = by

    def verdict(
        self, score: Tensor, opinions: Tensor, told: GivenConditions
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scores `[B]` and heads of a `Verdict`, from scores of clips whatever they are told and opinions
        `[B, dim]`."""
        heads = self._split(opinions)
        if self.by == "heads":
            return score, heads
        asked = self._split(self(told, like=opinions))
        for one in self.conditions:
            if one.kind == "label":
                score = score + (heads.pop(one.name) * asked[one.name]).sum(1)
        return score, heads

    def _split(self, joined: Tensor) -> dict[str, Tensor]:
        parts = torch.split(joined, self.widths, dim=1)
        return {
            c.name: part if c.kind == "label" else part[:, 0]
            for c, part in zip(self.conditions, parts, strict=True)
        }
