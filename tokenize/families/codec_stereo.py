"""Stereo through a mono codec: left and right are encoded apart.

Shapes: B batch, N samples, K the mono codec's codebooks, T frames, D its latent width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ...core.errors import UserError
from ..codec import Chunking, Codec
from ..segments import SegmentedCodec
from ..streaming import Parts


class Stereo(Codec):
    """A mono codec made stereo, with 2K codebooks L0 R0 L1 R1 …, the order of MusicGen's stereo models.

    (arXiv:2306.05284.) Coarse codebooks of both channels come before fine ones, and a delay pattern keeps
    its meaning. Latents are the left channel's D numbers, then the right's.

    Raises `UserError` if the codec has two channels already, no codebooks, or segments of its own.
    """

    def __init__(self, codec: Codec) -> None:
        mono = codec.info
        if mono.channels != 1:
            raise UserError(f"codec {mono.id} has {mono.channels} channels already: remove 'stereo'")
        if isinstance(codec, SegmentedCodec):
            raise UserError(f"codec {mono.id} encodes in segments, which are not joined: remove 'stereo'")
        if not mono.num_codebooks:
            raise UserError(f"codec {mono.id} has no codebooks to interleave: remove 'stereo'")
        super().__init__(
            dataclasses.replace(
                mono,
                stereo=True,
                channels=2,
                num_codebooks=2 * mono.num_codebooks,
                latent_dim=2 * mono.latent_dim,
            )
        )
        self.codec = codec

    @property
    def device(self) -> torch.device:
        """Where the weights of the mono codec are."""
        return self.codec.device

    @property
    def chunking(self) -> Chunking:
        """As the mono codec."""
        return self.codec.chunking

    def _encode(self, audio: Tensor) -> Tensor:
        codes = self.codec._encode(_channels_as_clips(audio))  # [2B, K, T]
        return torch.unflatten(codes, 0, (-1, 2)).transpose(1, 2).flatten(1, 2)

    def _decode(self, codes: Tensor) -> Tensor:
        return _clips_as_channels(self.codec._decode(_codes_as_clips(codes)))

    def _decode_stream(self, codes: Parts, num_frames: int) -> Iterator[Tensor]:
        """As the mono codec."""
        parts = self.codec._decode_stream((_codes_as_clips(part) for part in codes), num_frames)
        return (_clips_as_channels(part) for part in parts)

    def _encode_latents(self, audio: Tensor) -> Tensor:
        return _clips_as_channels(self.codec._encode_latents(_channels_as_clips(audio)))

    def _decode_latents(self, latents: Tensor) -> Tensor:
        clips = torch.unflatten(latents, 1, (2, -1)).flatten(0, 1)  # [2B, D, T]
        return _clips_as_channels(self.codec._decode_latents(clips))


def _channels_as_clips(audio: Tensor) -> Tensor:
    """`[B, 2, N]` to `[2B, 1, N]`: both channels of a clip are neighbours in one batch."""
    return audio.flatten(0, 1).unsqueeze(1)


def _codes_as_clips(codes: Tensor) -> Tensor:
    """`[B, 2K, T]` to `[2B, K, T]`."""
    return torch.unflatten(codes, 1, (-1, 2)).transpose(1, 2).flatten(0, 1)


def _clips_as_channels(clips: Tensor) -> Tensor:
    """`[2B, C, N]` to `[B, 2C, N]`."""
    return torch.unflatten(clips, 0, (-1, 2)).flatten(1, 2)
