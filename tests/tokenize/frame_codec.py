"""A codec for tests that takes no time: its codes are plain figures of each frame and its neighbours.

Shapes: B batch, N samples, T frames.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokkata.tokenize.codec import Chunking, Codec, CodecInfo
from tokkata.tokenize.families.codec_oobleck import Posterior

HOP = 160
INFO = CodecInfo("frames", None, 16000, 1, HOP, 100.0, 2, 1024, 2, {"torch": "2"})


class FrameCodec(Codec):
    """Latents are RMS and peak of three frames, codes those in steps of 1/1000; a frame more is context."""

    def __init__(self, info: CodecInfo = INFO) -> None:
        super().__init__(info)
        self.seen: list[tuple[int, ...]] = []
        """Shape of every batch."""
        self.weight = nn.Parameter(torch.zeros(1))  # tells the device

    chunking = Chunking(exact=True, encoder_context=1, decoder_context=0)

    def _encode_latents(self, audio: Tensor) -> Tensor:
        self.seen.append(tuple(audio.shape))
        frames = audio[:, 0].unflatten(-1, (-1, HOP))
        figures = torch.stack([frames.square().mean(-1), frames.abs().amax(-1)], dim=1)  # [B, 2, T]
        before, after = F.pad(figures, (1, 0))[..., :-1], F.pad(figures, (0, 1))[..., 1:]
        return (before + figures + after) / 3

    def _encode(self, audio: Tensor) -> Tensor:
        return (self._encode_latents(audio) * 1000).long()

    def _decode(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode_latents(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


class FrameVae(FrameCodec):
    """The same with a distribution of latents."""

    def encode_posterior(self, audio: Tensor) -> Posterior:
        mean = self.encode_latents(audio)
        return Posterior(mean, mean / 10 + 1)
