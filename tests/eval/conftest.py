from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tokkata.eval.embedding import EMBEDDINGS, Embedding, EmbeddingInfo

WIDTH = 8


class CoarseCodec:
    """Codes are the mean of each frame in steps of 1/128: a codec that loses everything above 25 Hz."""

    sample_rate = 16000
    channels = 1
    hop_length = 320
    frame_rate = 50.0
    num_codebooks = 1
    codebook_size = 256
    device = torch.device("cpu")

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        audio = F.pad(audio, (0, -audio.shape[-1] % self.hop_length))
        means = audio.unflatten(-1, (-1, self.hop_length)).mean(-1)
        return ((means * 128).round().long() + 128).clamp(0, 255)

    def decode(self, codes: torch.Tensor, num_samples: int) -> torch.Tensor:
        return ((codes - 128) / 128).repeat_interleave(self.hop_length, dim=-1)[..., :num_samples]

    def reconstruct(self, audio: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(audio), audio.shape[-1])


class SpectrumEmbedding(Embedding):
    """Log magnitudes of eight bands of frames of 20 ms: quick, and tells notes from noise."""

    def __init__(self) -> None:
        super().__init__(
            EmbeddingInfo("spectrum", "1", 16000, WIDTH, 0.02, 0.02, "eight bands in ln(x + 0.01)", "a test")
        )

    def frames(self, num_samples: int) -> int:
        return num_samples // 320

    def embed(self, audio: torch.Tensor) -> torch.Tensor:
        frames = audio[:, 0, : audio.shape[-1] // 320 * 320].unflatten(-1, (-1, 320))
        magnitudes = torch.fft.rfft(frames).abs()[..., 1:161].unflatten(-1, (WIDTH, -1)).mean(-1)
        return torch.log(magnitudes + 1e-2)


@pytest.fixture
def coarse_codec() -> CoarseCodec:
    return CoarseCodec()


@pytest.fixture
def quick_embedding(monkeypatch: pytest.MonkeyPatch) -> Embedding:
    """Stands in for the pocket codec's encoder."""
    embedding = SpectrumEmbedding()
    monkeypatch.setitem(EMBEDDINGS, "pocket", lambda name, weights, device: embedding)
    return embedding


@pytest.fixture
def tone() -> SimpleNamespace:
    """`tone.at(pitch, seconds)`: a decaying note with overtones, [1, N] at 16 kHz."""

    def at(pitch: float, seconds: float = 0.5) -> np.ndarray:
        time = np.arange(round(16000 * seconds)) / 16000
        f0 = 440.0 * 2.0 ** ((pitch - 69.0) / 12.0)
        harmonics = sum(np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 5))
        return (0.2 * harmonics * np.exp(-time))[None].astype(np.float32)

    return SimpleNamespace(at=at)
