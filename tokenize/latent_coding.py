"""The two ways in which a codec's latents are stored, and how each comes from audio and goes back to it.

Shapes: B batch, C channels, N samples, D latent width, T frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .codec import Codec
from .families.codec_dac import HubDac


class Decode(Protocol):
    """Latents to audio."""

    def __call__(self, latents: Tensor, num_samples: int | None = None, /) -> Tensor:
        """[B, D, T] to [B, C, num_samples]; None: as many as the frames have."""
        ...


@dataclass(frozen=True)
class LatentCoding:
    """Latents of one kind of one codec."""

    encode: Callable[[Tensor], Tensor]
    """Audio [B, C, N] to latents [B, D, T]."""
    decode: Decode


def latent_coding(codec: Codec, kind: str | None) -> LatentCoding:
    """How `codec` makes latents of `kind`: `projected_latents`, or else the encoder's own.

    `kind` is what `CodecInfo.latents` says; it is None for a model whose latents were not stored by Tokkata.
    """
    if kind != "projected_latents":
        return LatentCoding(codec.encode_latents, codec.decode_latents)
    assert isinstance(codec, HubDac), "only a DAC has projected latents"
    return LatentCoding(codec.encode_projected_latents, codec.decode_projected_latents)
