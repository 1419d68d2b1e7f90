"""The sound of a copy: a log-mel spectrogram in which only the strong partials count.

Shapes: B clips, N samples, T frames, M mel bands.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..embedding import Embedding, EmbeddingInfo, check_mono
from ..embeddings.mel_filters import htk_mel_filters, mel_magnitudes

SAMPLE_RATE = 8000
FFT, HOP = 2048, 512  # samples: 256 and 64 ms
NUM_MELS, MIN_HZ, MAX_HZ = 128, 60.0, 3800.0
WEAK = 30.0
"""Mel magnitude that begins to count; a sine of amplitude 0.14, the root mean square that `neighbours.level`
gives a clip, has about 70."""


class StrongMel(Embedding):
    """ln(1 + magnitude / 30) of 128 mel bands below 3.8 kHz, in windows of 256 ms every 64 ms.

    Made for audio at a root mean square of 0.1. What noise 20 dB below the sound or a codec adds lies far
    below 30 in each band and hardly changes the value; silence gives zero. The windows are long, so that a
    shift of the audio hardly changes it either.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(
            EmbeddingInfo(
                name="strongmel",
                version="1",
                sample_rate=SAMPLE_RATE,
                width=NUM_MELS,
                frame_s=FFT / SAMPLE_RATE,
                hop_s=HOP / SAMPLE_RATE,
                preprocessing="STFT magnitudes (2048, hop 512, Hann) at 8 kHz, 128 HTK-mel bands 60-3800 Hz,"
                " ln(1 + x / 30)",
                source="tokkata/eval/copies/strong_mel.py",
            )
        )
        filters = htk_mel_filters(FFT // 2 + 1, NUM_MELS, MIN_HZ, MAX_HZ, SAMPLE_RATE)
        self._filters = filters.float().to(device)  # [FFT / 2 + 1, M]
        self._window = torch.hann_window(FFT, device=device)

    def frames(self, num_samples: int) -> int:
        """A frame each 64 ms, at least one."""
        return max(1, (num_samples - FFT) // HOP + 1)

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, T, 128]`; a clip shorter than a window is filled up with silence."""
        check_mono(audio)
        samples = audio[:, 0].to(self._filters)
        samples = torch.nn.functional.pad(samples, (0, max(0, FFT - samples.shape[-1])))
        return mel_magnitudes(samples, self._window, HOP, self._filters).div_(WEAK).log1p_()
