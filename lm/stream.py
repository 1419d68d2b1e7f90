"""Audio while it is being generated.

Shapes: B batch, C channels, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ..core.errors import UserError
from ..tokenize.codec import Codec
from .generate import Generator, Inputs
from .language_model import LMConfig
from .sampling import Sampling

CHUNK_S = 0.5
"""How much is generated before it is decoded, unless one says otherwise."""


def stream_audio(
    generator: Generator,
    codec: Codec,
    num_frames: int,
    *,
    num_samples: int | None = None,
    chunk_frames: int | None = None,
    batch_size: int | None = None,
    conditions: Inputs | None = None,
    prompt: Tensor | Sequence[Tensor] | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    first_clip: int = 0,
    overlap_frames: int | None = None,
) -> Iterator[Tensor]:
    """Audio [B, C, n] as it comes, the prompt's first; together it is `codec.decode` of all codes.

    The codes are exactly those of `generator.generate` with the same arguments, the audio is that of the
    whole to the rounding of float32 (`Codec.decode_stream`). What is held is the model's cache, a window of
    the decoder, and 12 bytes a token.

    Args:
        num_samples: length of the audio, if not that of all frames.
        chunk_frames: frames generated before they are decoded; by default those of `CHUNK_S`. Fewer are heard
            earlier, and cost more: each chunk is decoded with the frames that a decoder sees around it.

    Raises `UserError` at the call for settings that do not fit, as `Generator.stream` does, and for a codec
    that is not the model's.
    """
    check_codec(generator.config, codec)
    chunks = generator.stream(
        num_frames,
        chunk_frames=chunk_frames or max(1, round(CHUNK_S * codec.frame_rate)),
        batch_size=batch_size,
        conditions=conditions,
        prompt=prompt,
        sampling=sampling,
        seed=seed,
        first_clip=first_clip,
        overlap_frames=overlap_frames,
    )
    return codec.decode_stream(chunks, num_frames, num_samples)


def check_codec(config: LMConfig, codec: Codec) -> None:
    """Raise `UserError` if the model's tokens cannot be the codec's."""
    for name in ("num_codebooks", "codebook_size", "frame_rate"):
        mine, theirs = getattr(config, name), getattr(codec, name)
        if mine != theirs:
            raise UserError(
                f"codec {codec.info.id} does not match the model: its {name} is {theirs:g}, the model's is"
                f" {mine:g}"
            )
