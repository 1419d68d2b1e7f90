"""Encoders and decoders of DAC, Oobleck and EnCodec, laid out for `fast_layers.py`, and how they are run.

A network is cut into stages. Within one, tiles go through all layers; between stages, the whole clip is held.
Tiles are shared out to as many threads as PyTorch has, each of which computes alone: they never wait for each
other inside a layer, and the result does not depend on their number.

Shapes: B batch, C channels, N samples of a stage at its own rate.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.models.dac import modeling_dac
from transformers.models.encodec import modeling_encodec

from .fast_layers import Chain, Conv, Elu, Layer, Padding, Residual, Snake, Span, Tanh, Tile, Upsample
from .share_out import share_out

if TYPE_CHECKING:  # importing it takes a second, and whoever has such a network has done so
    from diffusers.models.autoencoders import autoencoder_oobleck

# Numbers of a tile at the rate where it has most samples. Much smaller ones compute mostly their neighbours'
# margins, much larger ones leave the cache.
_TILE_NUMBERS = 1 << 18
_LEAST_TILE = 2048


class Stage(ABC):
    """A part of a network."""

    @abstractmethod
    def run(self, samples: Tensor) -> Tensor:
        """`[B, C, 1, N]` to `[B, C', 1, N']`, both channels-last."""


class Tiled(Stage):
    """Layers that are run tile by tile."""

    def __init__(self, layers: Sequence[Layer], num_outputs: int, tile: int) -> None:
        """`num_outputs` channels come out, in tiles of about `tile` samples."""
        self.chain = Chain(layers)
        self._num_outputs = num_outputs
        self._tile = tile

    def run(self, samples: Tensor) -> Tensor:
        """All tiles of all rows, by all threads."""
        total = samples.shape[-1]
        length = self.chain.length(total)
        out = torch.empty(
            (len(samples), self._num_outputs, 1, length), memory_format=torch.channels_last
        )  # float32

        def compute(job: tuple[int, Span]) -> None:
            row, span = job
            computed = _rounded(span, self._tile)
            whole = Tile(samples[row : row + 1], 0, total)
            start, stop = whole.inside(self.chain.needs(computed))
            tile = Tile(whole.samples[..., start:stop], start, total)
            kept = self.chain.run(tile, computed)[..., span[0] - computed[0] :]
            out[row : row + 1, ..., span[0] : span[1]] = kept

        share_out(
            compute, [(row, span) for row in range(len(samples)) for span in _spans(length, self._tile)]
        )
        return out


class Lstm(Stage):
    """EnCodec's LSTM with its skip connection: sequential in time, parallel over the batch."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self._lstm = lstm

    def run(self, samples: Tensor) -> Tensor:
        """As `EncodecLSTM`, always in float32."""
        steps = samples.squeeze(2).permute(2, 0, 1)  # [N, B, C]
        added: Tensor = self._lstm(steps)[0] + steps
        return added.permute(1, 2, 0).unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _spans(length: int, size: int) -> list[Span]:
    """Near equal stretches of about `size`; a few are a power of two, so that threads finish together."""
    count = max(1, round(length / size))
    if count < 8:
        count = 1 << (count - 1).bit_length()
    edges = [length * index // count for index in range(count + 1)]
    return list(itertools.pairwise(edges))


def _rounded(span: Span, size: int) -> Span:
    """The span, begun a little earlier where that makes its length one of a few.

    oneDNN generates code for each length that it has not met before. That took a tenth of the time of clips
    of a few seconds in bf16, each of another length.
    """
    step = max(1, size // 32)
    return max(0, span[1] - -(-(span[1] - span[0]) // step) * step), span[1]


# --- DAC, and Oobleck, which differs in its Snake, and has no tanh at its end


def dac_encoder(
    encoder: modeling_dac.DacEncoder | autoencoder_oobleck.OobleckEncoder, dtype: torch.dtype
) -> list[Stage]:
    """Stages of a DAC's or Oobleck's encoder: one for each of its blocks."""
    stages: list[Stage] = []
    # Audio and latents are not rounded, whatever the precision between them.
    layers: list[Layer] = [_dac_conv(encoder.conv1, torch.float32)]
    last = len(encoder.block) - 1
    for index, block in enumerate(encoder.block):
        strided = block.conv1
        layers += [*_dac_units(block, dtype), _snake(block.snake1), _dac_conv(strided, dtype)]
        num_outputs = strided.out_channels
        if index == last:
            layers += [_snake(encoder.snake1), _dac_conv(encoder.conv2, torch.float32)]
            num_outputs = encoder.conv2.out_channels
        stages.append(Tiled(layers, num_outputs, _tile(strided.in_channels) // strided.stride[0]))
        layers = []
    return stages


def dac_hop_length(encoder: modeling_dac.DacEncoder | autoencoder_oobleck.OobleckEncoder) -> int:
    """How many samples make a frame."""
    return math.prod(block.conv1.stride[0] for block in encoder.block)


def dac_decoder(
    decoder: modeling_dac.DacDecoder | autoencoder_oobleck.OobleckDecoder, dtype: torch.dtype
) -> list[Stage] | None:
    """Stages of a DAC's or Oobleck's decoder; None for one with settings that they themselves do not use."""
    stages: list[Stage] = []
    layers: list[Layer] = [_dac_conv(decoder.conv1, torch.float32)]
    last = len(decoder.block) - 1
    for index, block in enumerate(decoder.block):
        up = block.conv_t1
        if up.output_padding[0] or up.kernel_size[0] != 2 * up.stride[0]:
            return None
        trim = (up.padding[0], up.padding[0])
        upsample = Upsample(up.weight, up.bias, stride=up.stride[0], trim=trim, dtype=dtype)
        layers += [_snake(block.snake1), upsample, *_dac_units(block, dtype)]
        num_outputs = up.out_channels
        if index == last:
            layers += [_snake(decoder.snake1), _dac_conv(decoder.conv2, torch.float32)]
            if isinstance(decoder, modeling_dac.DacDecoder):
                layers.append(Tanh())
            num_outputs = decoder.conv2.out_channels
        stages.append(Tiled(layers, num_outputs, _tile(up.out_channels)))
        layers = []
    return stages


def _dac_units(block: nn.Module, dtype: torch.dtype) -> Iterable[Layer]:
    for name in ("res_unit1", "res_unit2", "res_unit3"):
        unit = getattr(block, name)
        yield Residual(
            Chain(
                [
                    _snake(unit.snake1),
                    _dac_conv(unit.conv1, dtype),
                    _snake(unit.snake2),
                    _dac_conv(unit.conv2, dtype),
                ]
            )
        )


def _snake(snake: modeling_dac.Snake1d | autoencoder_oobleck.Snake1d) -> Snake:
    if isinstance(snake, modeling_dac.Snake1d):
        return Snake(snake.alpha)
    return Snake(snake.alpha.exp(), snake.beta.exp()) if snake.logscale else Snake(snake.alpha, snake.beta)


def _dac_conv(conv: nn.Conv1d, dtype: torch.dtype) -> Conv:
    assert not isinstance(conv.padding, str)
    return Conv(
        conv.weight,
        conv.bias,
        padding=(conv.padding[0], conv.padding[0]),
        stride=conv.stride[0],
        dilation=conv.dilation[0],
        dtype=dtype,
    )


# --- EnCodec


def encodec_network(
    network: modeling_encodec.EncodecEncoder | modeling_encodec.EncodecDecoder, dtype: torch.dtype
) -> list[Stage] | None:
    """Stages of an EnCodec encoder or decoder; None where it normalises over time.

    A stage ends before each layer that raises the rate, behind each that lowers it, and around the LSTM.
    """
    stages: list[Stage] = []
    layers: list[Layer] = []
    channels = tile = 0

    def close() -> None:
        if layers:
            stages.append(Tiled(list(layers), channels, tile))
            layers.clear()

    for module in network.layers:
        match module:
            case modeling_encodec.EncodecConv1d():
                # Audio and latents are not rounded, whatever the precision between them.
                is_end = module in (network.layers[0], network.layers[-1])
                conv = _encodec_conv(module, torch.float32 if is_end else dtype)
                if conv is None:
                    return None
                layers.append(conv)
                channels = conv.num_outputs
                tile = _tile(conv.num_inputs) // int(module.stride)
                if int(module.stride) > 1:
                    close()
            case modeling_encodec.EncodecConvTranspose1d():
                upsample = _encodec_upsample(module, dtype)
                if upsample is None:
                    return None
                close()
                layers.append(upsample)
                channels = upsample.num_outputs
                tile = _tile(channels)
            case modeling_encodec.EncodecResnetBlock():
                residual = _encodec_residual(module, dtype)
                if residual is None:
                    return None
                layers.append(residual)
            case modeling_encodec.EncodecLSTM():
                close()
                stages.append(Lstm(module.lstm))
            case nn.ELU():
                layers.append(Elu())
            case _:
                return None
    close()
    return stages


def _encodec_conv(module: modeling_encodec.EncodecConv1d, dtype: torch.dtype) -> Conv | None:
    if module.norm_type != "weight_norm" or module.pad_mode not in ("reflect", "constant"):
        return None
    total = int(module.padding_total)
    right = 0 if module.causal else total // 2
    mode: Padding = module.pad_mode
    return Conv(
        module.conv.weight,
        module.conv.bias,
        padding=(total - right, right),
        stride=module.conv.stride[0],
        dilation=module.conv.dilation[0],
        mode=mode,
        dtype=dtype,
    )


def _encodec_upsample(module: modeling_encodec.EncodecConvTranspose1d, dtype: torch.dtype) -> Upsample | None:
    conv = module.conv
    stride = conv.stride[0]
    if module.norm_type != "weight_norm" or conv.kernel_size[0] != 2 * stride:
        return None
    right = -int(-stride * module.trim_right_ratio // 1) if module.causal else stride // 2
    return Upsample(conv.weight, conv.bias, stride=stride, trim=(stride - right, right), dtype=dtype)


def _encodec_residual(module: modeling_encodec.EncodecResnetBlock, dtype: torch.dtype) -> Residual | None:
    layers: list[Layer] = []
    for part in module.block:
        layer = Elu() if isinstance(part, nn.ELU) else _encodec_conv(part, dtype)
        if layer is None:
            return None
        layers.append(layer)
    shortcut = None
    if isinstance(module.shortcut, modeling_encodec.EncodecConv1d):
        shortcut = _encodec_conv(module.shortcut, dtype)
        if shortcut is None:
            return None
    return Residual(Chain(layers), shortcut)


def _tile(channels: int) -> int:
    """Samples of a tile of so many channels."""
    return max(_LEAST_TILE, _TILE_NUMBERS // channels)
