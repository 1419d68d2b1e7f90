"""EnCodec (arXiv:2210.13438) in its `transformers` port.

Shapes: B batch, C channels, N samples, K codebooks, T frames, D latent width.
"""

from __future__ import annotations

import math
from typing import Self

from torch import Tensor
from transformers import EncodecModel

from ..core.errors import UserError
from .codec import Codec, CodecInfo, library_versions, load_strictly


class HubEncodec(Codec):
    """`transformers.EncodecModel` behind the codec interface, one whole clip at a time."""

    def __init__(self, info: CodecInfo, model: EncodecModel, bandwidth_kbps: float) -> None:
        super().__init__(info)
        self.model = model
        self.bandwidth_kbps = bandwidth_kbps

    @classmethod
    def load(cls, id: str, source: str, revision: str | None, bandwidth_kbps: float | None) -> Self:
        """Load from the Hub, its cache, or a folder."""
        model = load_strictly(EncodecModel, id, source, revision)
        config = model.config
        if config.normalize or config.chunk_length_s is not None:
            raise UserError(
                f"codec {id} scales each segment by a gain that tokens do not hold:"
                " choose a model without normalisation, such as facebook/encodec_24khz"
            )
        known = list(config.target_bandwidths)
        if bandwidth_kbps is None and len(known) == 1:
            bandwidth_kbps = known[0]
        if bandwidth_kbps is None or bandwidth_kbps not in known:
            raise UserError(f"codec {id}: bandwidth_kbps must be one of {known}, not {bandwidth_kbps}")
        hop_length = math.prod(config.upsampling_ratios)
        frame_rate = config.sampling_rate / hop_length
        info = CodecInfo(
            id=id,
            revision=revision,
            sample_rate=config.sampling_rate,
            channels=config.audio_channels,
            hop_length=hop_length,
            frame_rate=frame_rate,
            num_codebooks=model.quantizer.get_num_quantizers_for_bandwidth(bandwidth_kbps),
            codebook_size=config.codebook_size,
            latent_dim=config.hidden_size,
            versions=library_versions(),
        )
        return cls(info, model, bandwidth_kbps)

    def _encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self.model.quantizer.encode(self.model.encoder(audio), self.bandwidth_kbps)
        return codes.transpose(0, 1)  # [K, B, T] → [B, K, T]

    def _decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(self.model.quantizer.decode(codes.transpose(0, 1)))
        return audio

    def _encode_latents(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.model.encoder(audio)
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(latents)
        return audio
