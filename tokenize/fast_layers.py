"""Layers of convolutional networks that compute any stretch of their output from the input that it needs.

A network run layer by layer over a whole clip writes each activation to memory and reads it back. Run tile
by tile, a tile goes through many layers while it stays in the CPU's cache. A tile has the real neighbours of
its samples around it, so the result is the whole clip's: padding only ever happens at the clip's real ends.

Samples are held channels-last, [B, C, 1, N] with the channels of a sample side by side, and weights in
oneDNN's own order: so no convolution has to reorder anything. A transposed convolution is an ordinary one
that gives the samples of a whole stride as channels.

Shapes: B batch, C channels, N samples of a layer at its own rate, n samples of a tile.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["constant", "reflect"]

Span = tuple[int, int]
"""First sample, and the one behind the last; may reach beyond the ends of the clip."""


@dataclass(frozen=True)
class Tile:
    """A stretch of a clip."""

    samples: Tensor  # [1, C, 1, n]
    start: int
    """Position of its first sample in the clip."""
    total: int
    """Samples of the clip."""

    def cut(self, span: Span, mode: Padding = "constant") -> Tensor:
        """The samples of `span`, which the tile holds; what lies beyond the clip's ends is padded."""
        first, last = self.inside(span)
        samples = self.samples[..., first - self.start : last - self.start]
        if (first, last) == span:
            return samples
        return F.pad(samples, (first - span[0], span[1] - last, 0, 0), mode)

    def inside(self, span: Span) -> Span:
        """The part of `span` that lies in the clip."""
        return max(span[0], 0), min(span[1], self.total)


class Layer(ABC):
    """A layer that can compute a part of its output."""

    def length(self, total: int) -> int:
        """Samples that come out where `total` go in."""
        return total

    def needs(self, span: Span) -> Span:
        """The input that a stretch of output depends on."""
        return span

    @abstractmethod
    def run(self, tile: Tile, span: Span) -> Tensor:
        """The samples `[1, C, 1, n]` of `span`, which lies in the clip, from a tile that holds its needs."""


class Conv(Layer):
    """A convolution with its padding."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        padding: tuple[int, int],
        stride: int = 1,
        dilation: int = 1,
        mode: Padding = "constant",
        dtype: torch.dtype,
    ) -> None:
        """`weight` is [C_out, C_in, kernel size]; what goes in is converted to `dtype`, and so comes out."""
        self.num_inputs = weight.shape[1]
        self.num_outputs = weight.shape[0]
        self._reach = dilation * (weight.shape[2] - 1) + 1
        self._padding = padding
        self._mode = mode
        self._stride = stride
        self._dilation = dilation
        self._dtype = dtype
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach().to("cpu", dtype)
        self._packed: Tensor | None = None

    def length(self, total: int) -> int:
        """As PyTorch counts."""
        return (total + sum(self._padding) - self._reach) // self._stride + 1

    def needs(self, span: Span) -> Span:
        """From the first sample under the kernel to the last."""
        start = span[0] * self._stride - self._padding[0]
        return start, start + (span[1] - span[0] - 1) * self._stride + self._reach

    def run(self, tile: Tile, span: Span) -> Tensor:
        """The convolution itself."""
        samples = tile.cut(self.needs(span), self._mode).to(self._dtype)
        stride, dilation = [1, self._stride], [1, self._dilation]
        # Packed when first used, as many a codec encodes and never decodes. Two threads may both do it.
        if self._packed is None:
            self._packed = _pack(self._weight.to("cpu", self._dtype), self._stride, self._dilation)
        if not can_pack():
            return F.conv2d(samples, self._packed, self._bias, stride, dilation=dilation)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            samples, self._packed, self._bias, [0, 0], stride, dilation, 1, "none", [], ""
        )
        return out


class Upsample(Layer):
    """A transposed convolution whose kernel is two strides long, with its ends trimmed."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, stride: int, trim: tuple[int, int], dtype: torch.dtype
    ) -> None:
        """`weight` is [C_in, C_out, 2 · stride]; `trim` samples are cut from the beginning and the end.

        Each sample of input adds to the samples of two strides. So those of stride m depend on the inputs
        m - 1, by the kernel's second half, and m, by its first: a convolution of two taps.
        """
        if weight.shape[2] != 2 * stride:
            raise ValueError(f"a kernel of {2 * stride} expected at stride {stride}, not {weight.shape[2]}")
        first, second = weight[..., :stride], weight[..., stride:]
        taps = torch.stack([second, first], dim=-1)  # [C_in, C_out, stride, 2]
        as_conv = taps.permute(2, 1, 0, 3).flatten(0, 1)  # [stride · C_out, C_in, 2]
        biases = None if bias is None else bias.repeat(stride)
        self._conv = Conv(as_conv, biases, padding=(1, 1), dtype=dtype)
        self._stride = stride
        self._trim = trim
        self.num_inputs = weight.shape[0]
        self.num_outputs = weight.shape[1]

    def length(self, total: int) -> int:
        """As PyTorch counts."""
        return (total + 1) * self._stride - sum(self._trim)

    def needs(self, span: Span) -> Span:
        """The inputs of all strides that the span touches."""
        return self._conv.needs(self._strides(span))

    def run(self, tile: Tile, span: Span) -> Tensor:
        """The samples of whole strides, cut to the span."""
        strides = self._strides(span)
        grouped = self._conv.run(tile, strides)  # [1, stride · C_out, 1, n]
        in_order = grouped.permute(0, 2, 3, 1).reshape(1, 1, -1, self.num_outputs).permute(0, 3, 1, 2)
        start = span[0] + self._trim[0] - strides[0] * self._stride
        return in_order[..., start : start + span[1] - span[0]]

    def _strides(self, span: Span) -> Span:
        start, stop = span[0] + self._trim[0], span[1] + self._trim[0]
        return start // self._stride, (stop - 1) // self._stride + 1


class Snake(Layer):
    """x + sin²(αx) / β, with one α and one β a channel; they are the same in arXiv:2006.08195."""

    def __init__(self, alpha: Tensor, beta: Tensor | None = None) -> None:
        """Without `beta`, it is `alpha`."""
        self._alpha = alpha.detach().cpu().reshape(1, -1, 1, 1)
        beta = self._alpha if beta is None else beta.detach().cpu().reshape(1, -1, 1, 1)
        self._inverse = (beta + 1e-9).reciprocal()

    def run(self, tile: Tile, span: Span) -> Tensor:
        """One temporary for all four operations, which stays in the cache."""
        samples = tile.cut(span).float()
        work = samples * self._alpha
        work.sin_().square_()
        return torch.addcmul(samples, work, self._inverse, out=work)


class Elu(Layer):
    """Exponential linear unit."""

    def run(self, tile: Tile, span: Span) -> Tensor:
        """As `torch.nn.ELU()`."""
        return F.elu(tile.cut(span).float())


class Tanh(Layer):
    """Hyperbolic tangent."""

    def run(self, tile: Tile, span: Span) -> Tensor:
        """As `torch.nn.Tanh()`."""
        return tile.cut(span).float().tanh_()


class Residual(Layer):
    """What comes out of `inner`, plus what goes in, by way of `shortcut` where there is one."""

    def __init__(self, inner: Chain, shortcut: Conv | None = None) -> None:
        self._inner = inner
        self._shortcut = shortcut

    def needs(self, span: Span) -> Span:
        """Those of `inner`; a shortcut needs no more than the span itself."""
        return self._inner.needs(span)

    def run(self, tile: Tile, span: Span) -> Tensor:
        """The sum, always in float32."""
        skipped = tile.cut(span) if self._shortcut is None else self._shortcut.run(tile, span)
        inner = self._inner.run(tile, span)
        if inner.dtype == torch.float32:
            return inner.add_(skipped)
        return skipped.float() + inner


class Chain(Layer):
    """Layers one after the other."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)

    def length(self, total: int) -> int:
        """Through all layers."""
        return functools.reduce(lambda length, layer: layer.length(length), self.layers, total)

    def needs(self, span: Span) -> Span:
        """Back through all layers."""
        return functools.reduce(lambda needed, layer: layer.needs(needed), reversed(self.layers), span)

    def run(self, tile: Tile, span: Span) -> Tensor:
        """Each layer computes exactly what the next one needs."""
        totals = list(
            itertools.accumulate(self.layers, lambda total, layer: layer.length(total), initial=tile.total)
        )
        spans = [span]
        for layer, total in zip(reversed(self.layers[1:]), reversed(totals[1:-1]), strict=True):
            start, stop = layer.needs(spans[-1])
            spans.append((max(start, 0), min(stop, total)))
        for layer, wanted, total in zip(self.layers, reversed(spans), totals[1:], strict=True):
            tile = Tile(layer.run(tile, wanted), wanted[0], total)
        return tile.samples


@functools.cache
def can_pack() -> bool:
    """Whether oneDNN is there; without it the same layers run on PyTorch's own convolutions."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")


def _pack(weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Weights [C_out, C_in, kernel size] in the order that the kernel wants for tiles of usual size."""
    flat = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    if not can_pack():
        return flat
    usual = [1, weight.shape[1], 1, dilation * (weight.shape[2] - 1) + 1024 * stride]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        flat, [0, 0], [1, stride], [1, dilation], 1, usual
    )
    return packed
