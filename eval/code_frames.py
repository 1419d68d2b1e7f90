"""A codec's tokens as frames, so that those of any folder are made, kept and compared like embeddings.

Shapes: B clips, N samples, K codebooks, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import UserError
from ..tokenize.chunking import window_frames
from ..tokenize.codec import Codec
from ..tokenize.fast_codec import fast
from .copies.find import MAX_FRAME_RATE
from .embedding import Embedding, EmbeddingInfo, check_mono
from .embeddings.codec_latents import WINDOW_S, in_windows


class CodeFrames(Embedding):
    """The codes of all codebooks, frame by frame, as whole numbers in float32.

    Audio as `CodecLatents` takes it. Raises `UserError` for a codec without codes, or with more than
    `MAX_FRAME_RATE` frames a second.
    """

    def __init__(self, codec: Codec) -> None:
        info = codec.info
        if not info.num_codebooks:
            raise UserError(f"codec {info.id} has no codes: token statistics need another codec")
        if info.frame_rate > MAX_FRAME_RATE:
            raise UserError(
                f"codec {info.id} has {info.frame_rate:g} tokens a second, hardly more than samples: token"
                " statistics need another codec"
            )
        super().__init__(
            EmbeddingInfo(
                name=f"tokens of {info.id}",
                version=info.revision or "1",
                sample_rate=info.sample_rate,
                width=info.num_codebooks,
                frame_s=(2 * codec.chunking.encoder_context + 1) / info.frame_rate,
                hop_s=1.0 / info.frame_rate,
                preprocessing=f"codes of {info.num_codebooks} codebooks",
                source=info.id,
            )
        )
        self.codebook_size = info.codebook_size
        self._codec = fast(codec)
        self._window_frames = window_frames(codec.chunking, info.frame_rate, WINDOW_S)

    def frames(self, num_samples: int) -> int:
        """One for each hop begun."""
        return self._codec.num_frames(num_samples)

    @torch.inference_mode(False)  # which threads of the fast encoders would not share
    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, T, K]`."""
        check_mono(audio)
        audio = audio.to(self._codec.device, torch.float32).expand(-1, self._codec.channels, -1)
        return in_windows(self._codec, self._codec.encode, audio, self._window_frames).mT.float()
