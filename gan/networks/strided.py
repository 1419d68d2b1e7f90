"""Strided convolutions from noise to an image and from an image to a verdict, in one or two dimensions.

WaveGAN and SpecGAN (arXiv:1802.04208, app. D) are the same networks, one over samples, one over frequencies
and frames: with a kernel of 25 and a stride of 4, or of 5 × 5 and 2 × 2, even their weights are as many.

Weights begin as arXiv:1502.01852 (eq. 10 and 14) has them, so that the sizes of activations and gradients do
not depend on the number of channels. The authors' code leaves them to its framework, whose choice
(arXiv:1010.01149's) lets the output of narrow generators be next to silence.

Shapes: B batch, C channels of an image, W those of a layer; `…` are the sides: `N` or `F, T`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.conditions import Conditions, GivenConditions
from ...core.errors import UserError
from ...core.schema_gan import ConditionedBy
from .family import ConditionJudge, ConditionVector, Discriminator, Generator, Shape, Verdict

_SLOPE = 0.2  # of leaky ReLUs

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


@dataclass(frozen=True)
class StridedLayers:
    """The layers that a generator and its discriminator have, in opposite order."""

    channels: int
    """Of the layer next to the image; each further layer has twice as many."""
    num_layers: int
    kernel: int
    """Length of a kernel's sides."""
    stride: int
    """Factor by which a layer changes each side."""
    num_sides: int
    """1 for samples, 2 for frequencies and frames."""

    @property
    def widths(self) -> list[int]:
        """Channels after each layer of the discriminator."""
        return [self.channels * 2**i for i in range(self.num_layers)]

    @property
    def factor(self) -> int:
        """By which all layers together change each side."""
        return int(self.stride**self.num_layers)

    @property
    def padding(self) -> int:
        """On both ends of a side, so that a layer divides its length by the stride."""
        return max(0, math.ceil((self.kernel - self.stride) / 2))

    def start(self, shape: Shape) -> tuple[int, ...]:
        """The sides of what has most channels; raises `UserError` if those of the image are no multiple."""
        sides = shape.of()[1:]
        if len(sides) != self.num_sides or any(side % self.factor for side in sides):
            what = "samples" if self.num_sides == 1 else "frequencies and frames"
            raise UserError(
                f"model.num_layers {self.num_layers} with stride {self.stride} makes clips whose {what} are"
                f" multiples of {self.factor}, not {' × '.join(map(str, sides))}: change train.crop_s, the"
                " representation or num_layers"
            )
        return tuple(side // self.factor for side in sides)

    def conv(self, num_in: int, num_out: int) -> nn.Module:
        """A layer of the discriminator."""
        conv = _CONVS[self.num_sides](num_in, num_out, self.kernel, self.stride, self.padding)
        _begin(conv, num_in * self.kernel**self.num_sides, gain=math.sqrt(2 / (1 + _SLOPE**2)))
        return conv

    def transposed(self, num_in: int, num_out: int, *, is_last: bool) -> nn.Module:
        """A layer of the generator; the last has no ReLU behind it."""
        missing = self.stride - self.kernel + 2 * self.padding
        conv = _TRANSPOSED[self.num_sides](num_in, num_out, self.kernel, self.stride, self.padding, missing)
        # Of the kernel's values, one in `stride` meets an input.
        seen = num_in * (self.kernel / self.stride) ** self.num_sides
        _begin(conv, seen, gain=1.0 if is_last else math.sqrt(2))
        return conv


class StridedGenerator(Generator):
    """A linear layer, then transposed convolutions with ReLUs between them, then tanh."""

    noise_kind = "uniform"

    def __init__(self, layers: StridedLayers, noise_dim: int, shape: Shape, conditions: Conditions) -> None:
        super().__init__()
        self._noise_dim = noise_dim
        self._start = (layers.widths[-1], *layers.start(shape))
        self.told = ConditionVector(conditions)
        self.begin = nn.Linear(noise_dim + self.told.dim, math.prod(self._start))
        # Numbers that are evenly distributed between -1 and 1 have a variance of a third.
        _begin(self.begin, noise_dim / 3, gain=1.0)
        widths = [*reversed(layers.widths), shape.channels]
        self.layers = nn.ModuleList(
            layers.transposed(a, b, is_last=i == layers.num_layers - 1)
            for i, (a, b) in enumerate(pairwise(widths))
        )

    def noise_shape(self, num_frames: int) -> tuple[int, ...]:
        """`[noise_dim]`."""
        return (self._noise_dim,)

    def forward(self, noise: Tensor, told: GivenConditions, level: float) -> Tensor:
        """An image `[B, C, …]`, within ±1."""
        x: Tensor = self.begin(torch.cat([noise, self.told(told, noise)], dim=1))
        x = x.reshape(-1, *self._start)
        for layer in self.layers:
            x = layer(F.relu(x))
        return torch.tanh(x)


class StridedDiscriminator(Discriminator):
    """Convolutions with leaky ReLUs, then a linear layer: the score, and what is recognised."""

    def __init__(
        self, layers: StridedLayers, shape: Shape, conditions: Conditions, by: ConditionedBy
    ) -> None:
        super().__init__()
        start = (layers.widths[-1], *layers.start(shape))
        widths = [shape.channels, *layers.widths]
        self.layers = nn.ModuleList(layers.conv(a, b) for a, b in pairwise(widths))
        self.of_told = ConditionJudge(conditions, by)
        self.end = nn.Linear(math.prod(start), 1 + self.of_told.dim)
        _begin(self.end, math.prod(start), gain=1.0)

    def between(self, x: Tensor, draws: Tensor, layer: int) -> Tensor:
        """What becomes of the output `[B, W, …]` of a layer, counted from 0, before the next one."""
        return x

    def forward(self, image: Tensor, told: GivenConditions, draws: Tensor, level: float) -> Verdict:
        """One score a clip, and perhaps a head for each condition."""
        x = image
        for i, layer in enumerate(self.layers):
            x = F.leaky_relu(layer(x), _SLOPE)
            if i < len(self.layers) - 1:
                x = self.between(x, draws, i)
        opinions = self.end(x.flatten(1))
        score, heads = self.of_told.verdict(opinions[:, 0], opinions[:, 1:], told)
        return Verdict([score], heads)


def _begin(layer: nn.Module, fan_in: float, gain: float) -> None:
    """Weights that keep the size of what comes in, and no bias."""
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    nn.init.zeros_(layer.bias)
