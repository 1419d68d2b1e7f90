"""A codec's networks made as fast as the CPU allows, with the codes of the plain ones.

In fp32 the arithmetic is the plain codec's but for the order of some sums. In bf16 the convolutions' inputs
and weights are rounded to bfloat16; sums, activations, residual paths, LSTMs and the quantiser stay in
float32.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.models.dac import modeling_dac
from transformers.models.encodec import modeling_encodec

from ..core.errors import UserError
from .codec import Codec
from .fast_layers import can_pack
from .fast_networks import Lstm, Stage, dac_decoder, dac_encoder, dac_hop_length, encodec_network

Precision = Literal["fp32", "bf16"]

# Below this many frames, the padding of one end could reach the other: the plain network is as fast then.
_FEWEST_FRAMES = 16


def fast(codec: Codec, precision: Precision = "fp32") -> Codec:
    """The same codec with fast convolutional encoders and decoders; it shares its weights with `codec`.

    That covers DAC and EnCodec in their `transformers` ports, Oobleck in that of `diffusers`, and what
    contains one (stereo, the acoustic half of X-Codec). Others come back as they are in fp32. On other
    devices than a CPU, fp32 is the plain codec, and bf16 is PyTorch's autocast.

    Raises `UserError` for bf16 where no network of the codec can use it, or the CPU has none.
    """
    # Measured on the networks themselves, so before they are replaced.
    contexts = [part.chunking for part in _codecs(codec)]
    faster = _replaced(codec, precision)
    if faster is codec:
        if precision != "fp32":
            raise UserError(
                f"codec {codec.info.id} has no networks that run in {precision}: use the precision fp32"
            )
        return codec
    if precision == "bf16" and codec.device.type == "cpu" and not _cpu_has_bf16():
        raise UserError("this CPU has no bf16 arithmetic: use the precision fp32")
    assert isinstance(faster, Codec)
    for part in _codecs(faster):
        part.info = dataclasses.replace(part.info, precision=precision)
    assert [part.chunking for part in _codecs(faster)] == contexts
    return faster


class FastNetwork(nn.Module):
    """A convolutional encoder or decoder that runs tile by tile."""

    def __init__(self, plain: nn.Module, stages: Sequence[Stage], precision: Precision, hop_in: int) -> None:
        """`hop_in` is how many samples of input make a frame: 1 for a decoder."""
        super().__init__()
        self.plain = plain
        self._stages = stages
        self._precision = precision
        self._hop_in = hop_in

    def forward(self, samples: Tensor) -> Tensor:
        """Audio or latents `[B, C, N]` to what the plain network gives, float32, without gradients."""
        if samples.device.type != "cpu":
            with torch.autocast(samples.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
                on_device: Tensor = self.plain(samples)
            return on_device.float()
        frames, rest = divmod(samples.shape[-1], self._hop_in)
        if frames < _FEWEST_FRAMES or rest:
            plain: Tensor = self.plain(samples)
            return plain
        with torch.no_grad():
            signal = samples.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            for stage in self._stages:
                signal = stage.run(signal)
        return signal.squeeze(2).contiguous()

    def around_lstm(self, before: nn.Module, behind: nn.Module) -> tuple[FastNetwork, FastNetwork]:
        """An EnCodec decoder's stages before and behind its LSTM; `before` and `behind` are plain ones."""
        at = next(i for i, stage in enumerate(self._stages) if isinstance(stage, Lstm))
        return (
            FastNetwork(before, self._stages[:at], self._precision, 1),
            FastNetwork(behind, self._stages[at + 1 :], self._precision, 1),
        )


def _fast_network(network: nn.Module, precision: Precision) -> FastNetwork | None:
    """The fast form of a network; None if it is of no known kind."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    stages: list[Stage] | None = None
    hop_in = 1
    match network:
        case modeling_dac.DacEncoder():
            stages = dac_encoder(network, dtype)
            hop_in = dac_hop_length(network)
        case modeling_dac.DacDecoder():
            stages = dac_decoder(network, dtype)
        case modeling_encodec.EncodecEncoder():
            stages = encodec_network(network, dtype)
            strided = (layer for layer in network.layers if isinstance(layer, modeling_encodec.EncodecConv1d))
            hop_in = math.prod(layer.conv.stride[0] for layer in strided)
        case modeling_encodec.EncodecDecoder():
            stages = encodec_network(network, dtype)
        case nn.Module() if _is_of_diffusers(network, "OobleckEncoder"):
            stages = dac_encoder(network, dtype)
            hop_in = dac_hop_length(network)
        case nn.Module() if _is_of_diffusers(network, "OobleckDecoder"):
            stages = dac_decoder(network, dtype)
    return None if stages is None else FastNetwork(network, stages, precision, hop_in)


def _is_of_diffusers(network: nn.Module, name: str) -> bool:
    """By its name: importing the package to compare classes would take a second for every other codec."""
    return (type(network).__module__.split(".")[0], type(network).__name__) == ("diffusers", name)


def _replaced(module: nn.Module, precision: Precision) -> nn.Module:
    """A copy of `module` with fast networks in place of plain ones; itself where it holds none."""
    network = _fast_network(module, precision)
    if network is not None:
        return network
    children = {name: _replaced(child, precision) for name, child in module.named_children()}
    if all(children[name] is child for name, child in module.named_children()):
        return module
    # A copy shares all it holds, its table of children too: that one alone becomes its own.
    copied = copy.copy(module)
    copied.__dict__["_modules"] = {**module._modules, **children}
    return copied


def _codecs(codec: nn.Module) -> list[Codec]:
    """The codec, and those that it wraps."""
    return [part for part in codec.modules() if isinstance(part, Codec)]


def _cpu_has_bf16() -> bool:
    return can_pack() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
