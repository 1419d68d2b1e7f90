"""Melody: the loudest pitch class of each moment (MusicGen, arXiv:2306.05284, sec. 2.3).

Shapes: B windows, N samples, L frames, P = 12 pitch classes from C to B.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.audio_utils import chroma_filter_bank

from ..chunking import Window
from ..codec import library_versions
from .feature import WINDOW_S, AudioEncoder, FeatureInfo

SAMPLE_RATE = 32000
NUM_CHROMA = 12
_FFT = 1 << 14
_HOP = _FFT // 4

# Frames before a window's first kept one. Two would do for what a frame hears, but then the last window of a
# clip could be shorter than the transform.
_BEFORE = 4
_KEPT = round(WINDOW_S * SAMPLE_RATE / _HOP)


class Melody(AudioEncoder):
    """One-hot chroma `[L, 12]` at 7.8125 frames/s, as audiocraft and `transformers` compute it.

    Mono at 32 kHz; power spectra of 16384 samples every 4096 (periodic Hann, centred, reflected at the clip's
    ends, L = N // 4096 + 1); librosa's chroma filters without tuning; the largest of the twelve becomes 1. A
    clip shorter than one spectrum is filled up with zeros on both sides. MusicGen takes drums and bass out
    first, with Demucs; here the whole mix is heard, so a loud bass line leads. Digital silence is a C, as
    there.
    """

    in_batches = False

    def __init__(self, name: str) -> None:
        super().__init__(
            FeatureInfo(
                name=name,
                kind="melody",
                dim=NUM_CHROMA,
                frame_rate=SAMPLE_RATE / _HOP,
                store="float16",
                versions=library_versions(),
                sample_rate=SAMPLE_RATE,
                channels=1,
            )
        )
        filters = chroma_filter_bank(
            num_frequency_bins=_FFT, num_chroma=NUM_CHROMA, sampling_rate=SAMPLE_RATE
        )
        self._filters = torch.from_numpy(filters).float()  # [P, _FFT / 2 + 1]
        self._window = torch.hann_window(_FFT)

    def plan(self, num_samples: int) -> list[Window]:
        """Windows of 20 s that hold all that their frames hear: the frames are those of the whole clip."""
        num_frames = num_samples // _HOP + 1
        if num_samples < _FFT:
            return [Window(0, num_samples, 0, _FFT // _HOP + 1)]
        windows = []
        for first in range(0, num_frames, _KEPT):
            start = max(0, first - _BEFORE)
            keep = min(_KEPT, num_frames - first)
            end = min(num_samples, (first + keep + 1) * _HOP)
            windows.append(Window(start * _HOP, end - start * _HOP, first - start, keep))
        return windows

    def encode_windows(self, audio: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        """Samples `[B, 1, N]` to the frames `[L, 12]` that each window keeps."""
        samples = audio[:, 0]
        missing = max(0, _FFT - samples.shape[1])
        samples = F.pad(samples, (missing // 2, missing - missing // 2))
        spectra = torch.stft(
            samples, _FFT, _HOP, window=self._window, pad_mode="reflect", return_complex=True
        )
        # Scaling a frame to a maximum of 1, as the papers' code does first, moves no maximum.
        chroma = self._filters @ spectra.abs().square()  # [B, P, L]
        one_hot = F.one_hot(chroma.argmax(dim=1), NUM_CHROMA).float()
        return [
            frames[window.drop_frames : window.drop_frames + window.keep_frames]
            for frames, window in zip(one_hot, windows, strict=True)
        ]

    def join(self, parts: Sequence[Tensor], windows: Sequence[Window]) -> Tensor:
        """The frames of all windows, `[L, 12]`."""
        return torch.cat(list(parts))
