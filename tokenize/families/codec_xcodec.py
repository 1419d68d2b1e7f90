"""X-Codec (arXiv:2408.17175) in its `transformers` port: an acoustic encoder beside a HuBERT.

Shapes: B batch, N samples, K codebooks, T frames, D latent width.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import XcodecModel

from ...core.errors import UserError
from ..codec import Chunking, Codec, CodecInfo, library_versions, load_strictly
from ..receptive_field import conv_context


class HubXcodec(Codec):
    """`transformers.XcodecModel` behind the codec interface."""

    def __init__(self, info: CodecInfo, model: XcodecModel, bandwidth_kbps: float) -> None:
        super().__init__(info)
        self.model = model
        self.bandwidth_kbps = bandwidth_kbps

    @classmethod
    def load(cls, id: str, source: str, revision: str | None, bandwidth_kbps: float | None) -> Self:
        """Load from the Hub, its cache, or a folder."""
        model = load_strictly(XcodecModel, id, source, revision)
        config = model.config
        known = list(config.target_bandwidths)
        if bandwidth_kbps is None and len(known) == 1:
            bandwidth_kbps = known[0]
        if bandwidth_kbps is None or bandwidth_kbps not in known:
            raise UserError(f"codec {id}: bandwidth_kbps must be one of {known}, not {bandwidth_kbps}")
        info = CodecInfo(
            id=id,
            revision=revision,
            sample_rate=config.sample_rate,
            channels=1,
            hop_length=config.hop_length,
            frame_rate=config.sample_rate / config.hop_length,
            num_codebooks=model.quantizer.get_num_quantizers_for_bandwidth(bandwidth_kbps),
            codebook_size=config.codebook_size,
            latent_dim=config.hidden_size,
            versions=library_versions(),
            bandwidth_kbps=bandwidth_kbps,
        )
        return cls(info, model, bandwidth_kbps)

    @functools.cached_property
    def chunking(self) -> Chunking:
        """As many frames on each side as the convolutions of both branches see.

        HuBERT's attention, and the normalisation of its first layer over time, see all of a window, so no
        context makes windows equal to the whole clip; but no frame that is kept sees a window's edge in a
        convolution. The decoder is convolutional.
        """
        hop_length = self.info.hop_length
        semantic = _hubert_context(self.model.semantic_model.config, hop_length)
        semantic += conv_context(self.model.encoder_semantic, 1)
        acoustic = conv_context(self.model.acoustic_encoder, hop_length)
        return Chunking(
            exact=False,
            encoder_context=max(semantic, acoustic),
            decoder_context=conv_context(self.model.acoustic_decoder, hop_length),
        )

    def _encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self.model.quantizer.encode(self._encode_latents(audio), self.bandwidth_kbps)
        return codes.transpose(0, 1)  # [K, B, T] → [B, K, T]

    def _decode(self, codes: Tensor) -> Tensor:
        return self._decode_latents(self.model.quantizer.decode(codes.transpose(0, 1)))

    def _encode_latents(self, audio: Tensor) -> Tensor:
        semantic = self.model._extract_semantic_features(audio).transpose(1, 2)
        semantic = self.model.encoder_semantic(semantic)
        acoustic = self.model.acoustic_encoder(audio)
        if acoustic.shape[-1] != semantic.shape[-1]:  # as the library does, for strides that floor
            acoustic = self.model.acoustic_encoder(F.pad(audio, (self.model.pad, self.model.pad)))
        joined = torch.cat([acoustic, semantic], dim=1)
        latents: Tensor = self.model.fc(joined.transpose(1, 2)).transpose(1, 2)
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        acoustic = self.model.fc2(latents.transpose(1, 2)).transpose(1, 2)
        audio: Tensor = self.model.acoustic_decoder(acoustic)
        return audio


def _hubert_context(config: Any, hop_length: int) -> int:
    """Frames on each side that HuBERT's convolutions see: those over samples, then that over positions."""
    field, step = 1, 1  # samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * step
        step *= stride
    frames: int = math.ceil(field / hop_length) + config.num_conv_pos_embeddings // 2
    return frames
