"""Mimi, the codec of Moshi (arXiv:2410.00037), in its `transformers` port.

Shapes: B batch, N samples, K codebooks, T frames, D latent width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Self

from torch import Tensor
from transformers import DynamicCache, MimiModel

from ...core.errors import UserError
from ..codec import Chunking, Codec, CodecInfo, library_versions, load_strictly
from ..receptive_field import Reach, conv_reach
from ..streaming import Parts, in_windows


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

    def _decode_stream(self, codes: Parts, num_frames: int) -> Iterator[Tensor]:
        """Exact, without delay: the Transformer keeps the keys and values of its attention window."""
        decoder = self.model.decoder
        stride = self.model.config.latent_stride
        before, behind = self._reaches
        latents = (self.model.quantizer.decode(part) for part in codes)
        states = in_windows(latents, decoder.upsample, stride, before, num_frames)
        states = self._through_transformer(states)
        hop_length = self.info.hop_length // stride
        return in_windows(states, decoder.decoder_seanet, hop_length, behind, num_frames * stride)

    def _through_transformer(self, states: Parts) -> Iterator[Tensor]:
        """`[B, D, t]` to the same, in parts that see those before."""
        transformer = self.model.decoder.decoder_transformer
        cache = DynamicCache(config=transformer.config)
        for part in states:
            yield transformer(part.transpose(1, 2), past_key_values=cache).last_hidden_state.transpose(1, 2)

    @functools.cached_property
    def _reaches(self) -> tuple[Reach, Reach]:
        """How far the convolutions before and behind the Transformer look, each in frames of its input."""
        decoder = self.model.decoder
        stride = self.model.config.latent_stride
        return (
            conv_reach(decoder.upsample, stride),
            conv_reach(decoder.decoder_seanet, self.info.hop_length // stride),
        )

    def _encode_latents(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.model.encoder(audio).latents
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(latents).audio_values
        return audio
