"""Codecs whose figures are known in closed form.

Shapes: B batch, C channels, N samples, K codebooks, T frames, V codebook size.
"""

import torch
from torch import nn

from tokkata.tokenize.codec import Chunking, Codec, CodecInfo

K, V, HOP = 2, 16, 320
INFO = CodecInfo("noisy", None, 16000, 1, HOP, 50.0, K, V, 4, {"torch": "2"})


class NoisyCodec(Codec):
    """Gives back what it got, with noise 20 dB below; codebook k uses k + 1 of its 16 entries."""

    chunking = Chunking(exact=True, encoder_context=0, decoder_context=0)

    def __init__(self, info=INFO):
        super().__init__(info)
        self.weight = nn.Parameter(torch.zeros(1))  # tells the device

    def _encode(self, audio):
        self.audio = audio
        frames = torch.arange(audio.shape[-1] // HOP)
        return torch.stack([frames % (k + 1) for k in range(K)])[None]

    def _decode(self, codes):
        audio = self.audio - self.audio.mean()
        noise = torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))
        noise -= noise.mean()
        # At right angles to the signal, so that the ratio is exact.
        noise -= (noise * audio).sum() / audio.square().sum() * audio
        return self.audio + 0.1 * noise * audio.norm() / noise.norm()

    def _encode_latents(self, audio):
        raise NotImplementedError

    def _decode_latents(self, latents):
        raise NotImplementedError


class MeanVae(NoisyCodec):
    """No codes: a latent is the mean of a frame, another one is always 2."""

    def __init__(self, sample_rate=8000, channels=2):
        super().__init__(
            CodecInfo("means", None, sample_rate, channels, 40, sample_rate / 40, 0, 0, 2, {"torch": "2"})
        )

    def _encode_latents(self, audio):
        means = audio.mean(1).unflatten(-1, (-1, 40)).mean(-1)
        return torch.stack([means, torch.full_like(means, 2.0)], dim=1)

    def _decode_latents(self, latents):
        audio = latents[:, :1].repeat_interleave(40, dim=-1)
        return audio.expand(-1, self.channels, -1)
