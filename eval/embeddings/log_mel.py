"""`logmel`: a log-mel spectrogram, summed up over quarters of a second; no network, no weights.

Shapes: B clips, N samples, F spectrogram frames, M mel bands, T frames, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..embedding import Embedding, EmbeddingInfo, check_mono
from .mel_filters import htk_mel_filters, mel_magnitudes

SAMPLE_RATE = 32000
FFT, HOP = 1024, 512  # samples: 32 and 16 ms
NUM_MELS, MIN_HZ, MAX_HZ = 64, 40.0, 15000.0
OFFSET = 0.1
"""Added to mel magnitudes before the logarithm. A sine of amplitude a has about 256·a, so this is -68 dB of
full scale, in the order of what a quiet room adds to music that is played loud: what lies below is not heard,
and must not rule a distance as it would in a pure logarithm."""
PATCH = 15  # spectrogram frames: 15 windows that overlap by half span 8192 samples
PATCH_HOP = 8
PATCH_SAMPLES = FFT + (PATCH - 1) * HOP


class LogMel(Embedding):
    """Mean, and mean absolute change from frame to frame, of 64 log-mel bands over 0.256 s, every 0.128 s.

    32 kHz mono, as loud as it is; windows of 1024 samples (periodic Hann, no centring) every 512; magnitudes
    of the FFT; 64 triangular HTK-mel bands, 40–15000 Hz; ln(x + 0.1); over 15 windows the mean of each band
    and the mean absolute difference of successive windows. A clip shorter than 0.256 s is filled up with
    silence to that; samples at the end that do not fill a step of 0.128 s are left out.

    It hears spectrum, loudness and how restless they are, not melody, rhythm or anything longer than a
    quarter of a second. Its source is this file: no publication stands behind it.
    """

    is_light = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(
            EmbeddingInfo(
                name="logmel",
                version="1",
                sample_rate=SAMPLE_RATE,
                width=2 * NUM_MELS,
                frame_s=PATCH_SAMPLES / SAMPLE_RATE,
                hop_s=PATCH_HOP * HOP / SAMPLE_RATE,
                preprocessing=(
                    "STFT magnitudes (1024, hop 512, Hann), 64 HTK-mel bands 40-15000 Hz, ln(x + 0.1),"
                    " mean and mean absolute difference over 15 windows"
                ),
                source="tokkata/eval/embeddings/log_mel.py",
            )
        )
        filters = htk_mel_filters(FFT // 2 + 1, NUM_MELS, MIN_HZ, MAX_HZ, SAMPLE_RATE)
        self._filters = filters.float().to(device)  # [FFT / 2 + 1, M]
        self._window = torch.hann_window(FFT, device=device)

    def frames(self, num_samples: int) -> int:
        """A frame each 0.128 s, at least one."""
        return max(1, (num_samples - PATCH_SAMPLES) // (PATCH_HOP * HOP) + 1)

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, T, 128]`: 64 means, then 64 mean absolute differences."""
        check_mono(audio)
        samples = audio[:, 0].to(self._filters)
        short = PATCH_SAMPLES - samples.shape[-1]
        samples = torch.nn.functional.pad(samples, (0, max(0, short)))
        bands = mel_magnitudes(samples, self._window, HOP, self._filters)
        mels = bands.add_(OFFSET).log_()  # [B, F, M]
        patches = mels.unfold(1, PATCH, PATCH_HOP)  # [B, T, M, PATCH]
        return torch.cat([patches.mean(-1), patches.diff(dim=-1).abs().mean(-1)], dim=-1)
