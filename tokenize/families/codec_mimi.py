"""Mimi, the codec of Moshi (arXiv:2410.00037), in its `transformers` port.

Shapes: B batch, N samples, K codebooks, T frames, D latent width.
"""

from __future__ import annotations

import math
from typing import Self

from torch import Tensor
from transformers import MimiModel

from ...core.errors import UserError
from ..codec import Chunking, Codec, CodecInfo, library_versions, load_strictly


class HubMimi(Codec):
    """`transformers.MimiModel` behind the codec interface; the first codebooks are the semantic ones."""

    def __init__(self, info: CodecInfo, model: MimiModel) -> None:
        super().__init__(info)
        self.model = model

    @classmethod
    def load(cls, id: str, source: str, revision: str | None, num_codebooks: int | None) -> Self:
        """Load from the Hub, its cache, or a folder."""
        model = load_strictly(MimiModel, id, source, revision)
        config = model.config
        fewest, most = config.num_semantic_quantizers, config.num_quantizers
        kept = most if num_codebooks is None else num_codebooks
        if not fewest <= kept <= most:
            raise UserError(f"codec {id}: num_codebooks must be from {fewest} to {most}, not {kept}")
        hop_length = math.prod(config.upsampling_ratios) * config.latent_stride
        info = CodecInfo(
            id=id,
            revision=revision,
            sample_rate=config.sampling_rate,
            channels=config.audio_channels,
            hop_length=hop_length,
            frame_rate=config.sampling_rate / hop_length,
            num_codebooks=kept,
            codebook_size=config.codebook_size,
            latent_dim=config.hidden_size,
            versions=library_versions(),
        )
        return cls(info, model)

    @property
    def chunking(self) -> Chunking:
        """A quarter of the Transformers' attention window as warm-up: 32 frames, 2.6 s, for `kyutai/mimi`.

        A frame depends on all that its Transformer's layers reach back to together, a window each, so no
        affordable context makes windows equal to the whole clip. Nothing depends on what comes later.
        """
        config = self.model.config
        context = math.ceil(config.sliding_window / 4 / config.latent_stride)
        return Chunking(exact=False, encoder_context=0, decoder_context=0, warm_up=context)

    def _encode(self, audio: Tensor) -> Tensor:
        latents = self._encode_latents(audio)
        codes: Tensor = self.model.quantizer.encode(latents, self.info.num_codebooks)
        return codes.transpose(0, 1)  # [K, B, T] → [B, K, T]

    def _decode(self, codes: Tensor) -> Tensor:
        return self._decode_latents(self.model.quantizer.decode(codes))

    def _encode_latents(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.model.encoder(audio).latents
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(latents).audio_values
        return audio
