"""Layers of networks that grow: equalised learning rates, pixel norm, deviations within a batch, resolutions.

They are those of arXiv:1710.10196. Everything but `minibatch_deviation` looks at each clip alone.

Shapes: B batch, C channels, F frequencies, T frames.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2
"""Slope of leaky ReLUs below 0 (arXiv:1710.10196, app. A.1)."""

HE_GAIN = math.sqrt(2)
"""Of layers before a ReLU (arXiv:1502.01852, eq. 10)."""

_EPS = 1e-8


# Equalised learning rate: arXiv:1710.10196, sec. 4.1. Optimisers that divide by the size of gradients move
# all weights at one rate; that suits all layers if all weights have the same scale.
class EqualConv2d(nn.Module):
    """A convolution whose weights are N(0, 1) and are multiplied by `gain / sqrt(fan_in)` when they are used.

    The output has the input's size, but for frames if `pad_time` is False: `kernel[1] - 1` fewer then. Beyond
    an edge stand zeros or, with `extend`, what stands at the edge.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int] = (3, 3),
        *,
        pad_time: bool = True,
        extend: bool = False,
        gain: float = HE_GAIN,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = gain / math.sqrt(in_channels * kernel[0] * kernel[1])
        self.padding = (kernel[0] // 2, kernel[1] // 2 if pad_time else 0)
        self.extend = extend

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C_in, F, T]` to `[B, C_out, F, T]`."""
        # What comes out has the weight's memory format, and so has all that is made of it: convolutions and
        # what stands between them are faster with channels last, on a CPU in bfloat16 most of all.
        weight = (self.weight * self.scale).contiguous(memory_format=torch.channels_last)
        if not self.extend:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        bins, frames = self.padding
        return F.conv2d(F.pad(x, (frames, frames, bins, bins), mode="replicate"), weight, self.bias)


class EqualLinear(nn.Module):
    """A linear layer whose weights are N(0, 1), multiplied by `gain / sqrt(fan_in)` when they are used."""

    def __init__(self, in_features: int, out_features: int, *, gain: float = HE_GAIN) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = gain / math.sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        """`[…, in_features]` to `[…, out_features]`."""
        return F.linear(x, self.weight * self.scale, self.bias)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU; it may overwrite what it is given, which is a layer's output."""
    return F.leaky_relu_(x, LEAK)


# arXiv:1710.10196, sec. 4.2.
def pixel_norm(x: Tensor) -> Tensor:
    """`x` `[B, C, …]` with mean square 1 over C at each place, whatever there is at others."""
    return x * (x.square().mean(1, keepdim=True) + _EPS).rsqrt()


# arXiv:1710.10196, sec. 3; in groups, as the published code of StyleGAN (arXiv:1812.04948) has it.
def minibatch_deviation(x: Tensor, largest_group: int = 4) -> Tensor:
    """`x` `[B, C, …]` with one more channel: how much clips of a group differ, averaged over all numbers.

    The batch is cut into groups of consecutive clips, of as many as divide both it and `largest_group`.
    Micro-batches and processes that hold a multiple of `largest_group` clips thus find what one process finds
    with all of them; with another number of clips their groups are smaller, and the verdict is another one. A
    group of one clip has no deviation: the channel is 0 then.
    """
    size = math.gcd(len(x), largest_group)
    if size == 1:
        return torch.cat([x, x.new_zeros(len(x), 1, *x.shape[2:])], dim=1)
    groups = x.reshape(-1, size, *x.shape[1:]).float()
    deviation = (groups.var(1, correction=0) + _EPS).sqrt().flatten(1).mean(1)
    channel = deviation.to(x).repeat_interleave(size).view(-1, 1, *[1] * (x.ndim - 2))
    return torch.cat([x, channel.expand(-1, 1, *x.shape[2:])], dim=1)


class Convolutions(nn.Module):
    """Convolutions 3x3 from each of `widths` to the next, each with a leaky ReLU and perhaps pixel norm."""

    def __init__(self, widths: Sequence[int], *, norm: bool, extend: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualConv2d(a, b, extend=extend) for a, b in pairwise(widths))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """`[B, widths[0], F, T]` to `[B, widths[-1], F, T]`."""
        for layer in self.layers:
            x = leaky(layer(x))
            x = pixel_norm(x) if self.norm else x
        return x


# Each of the two is the other's derivative but for a factor. Said so, they take a third of the time that
# PyTorch's pooling and upsampling take on a CPU, where that is a good part of a step.
class _Enlarge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: tuple[int, int]) -> Tensor:
        ctx.factor = factor
        return F.interpolate(x, scale_factor=(float(factor[0]), float(factor[1])), mode="nearest")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return shrink(grads[0], ctx.factor) * math.prod(ctx.factor), None


class _Shrink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: tuple[int, int]) -> Tensor:
        ctx.factor = factor
        batch, channels, bins, frames = x.shape
        rows = x.reshape(batch, channels, bins // factor[0], factor[0], frames).unbind(3)
        summed = functools.reduce(torch.add, rows)
        columns = summed.view(*summed.shape[:3], frames // factor[1], factor[1]).unbind(4)
        return functools.reduce(torch.add, columns) / math.prod(factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return enlarge(grads[0] / math.prod(ctx.factor), ctx.factor), None


def enlarge(x: Tensor, factor: tuple[int, int] = (2, 2)) -> Tensor:
    """`[B, C, F, T]` with every number repeated `factor` times over frequencies and frames."""
    large: Tensor = _Enlarge.apply(x, factor)  # type: ignore[no-untyped-call]
    return large


def shrink(x: Tensor, factor: tuple[int, int] = (2, 2)) -> Tensor:
    """`[B, C, F, T]` averaged over rectangles: what `enlarge` has made becomes what it was."""
    if factor == (1, 1):
        return x
    small: Tensor = _Shrink.apply(x, factor)  # type: ignore[no-untyped-call]
    return small


def fade(level: float, low: Callable[[], Tensor], high: Tensor) -> Tensor:
    """`high`, or, on the way to a new resolution, so much of it as belongs to `level` and `low` for the rest.

    `low` is not called at whole levels, where nothing of it would be left (arXiv:1710.10196, fig. 2).
    """
    share = level - math.floor(level)
    return high if share == 0 else torch.lerp(low(), high, share)
