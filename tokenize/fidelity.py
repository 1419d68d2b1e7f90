"""How close a decoded signal is to the original, and how well a codec uses its codebooks.

Shapes: B batch, N samples, K codebooks, T frames, V codebook size.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from audiotools import AudioSignal
from dac.nn.loss import MelSpectrogramLoss, MultiScaleSTFTLoss
from torch import Tensor, nn

MEL_WINDOWS = (64, 128, 256, 512, 1024)  # samples
MEL_BINS = (10, 20, 40, 80, 160)
MEL_FLOOR = 1e-5

STFT_WINDOWS = (2048, 512)  # samples

# An AudioSignal keeps its last spectrogram, and says so of every further window length.
warnings.filterwarnings("ignore", message="stft_data changed shape", module="audiotools")


class _Signal(AudioSignal):  # type: ignore[misc]
    """Audio whose mel filters stay on their device: audiotools copies them there for each spectrogram, which
    makes a GPU wait."""

    def mel_spectrogram(
        self, n_mels: int = 80, mel_fmin: float = 0.0, mel_fmax: float | None = None, **stft: object
    ) -> Tensor:
        """`[B, C, n_mels, T]`, as audiotools has it."""
        magnitude = torch.abs(self.stft(**stft))  # [B, C, F, T]
        size = 2 * (magnitude.shape[2] - 1)
        filters = _mel_filters(
            self.sample_rate, size, n_mels, mel_fmin, mel_fmax, magnitude.device, magnitude.dtype
        )
        return (magnitude.transpose(2, 3) @ filters.T).transpose(2, 3)


@functools.cache
def _mel_filters(
    rate: int,
    size: int,
    num_mels: int,
    low: float,
    high: float | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    filters = AudioSignal.get_mel_filters(sr=rate, n_fft=size, n_mels=num_mels, fmin=low, fmax=high)
    return torch.from_numpy(filters).to(device, dtype)


class MelDistance:
    """DAC's multi-scale distance of log10-mel spectrograms, summed over windows.

    Magnitudes below `floor` count as `floor`; 1e-5 is what DAC reports with. Windows as in arXiv:2306.06546,
    sec. 3.4, by default without 32 and 2048.
    """

    def __init__(
        self,
        sample_rate: int,
        floor: float = MEL_FLOOR,
        windows: Sequence[int] = MEL_WINDOWS,
        bins: Sequence[int] = MEL_BINS,
    ) -> None:
        self._sample_rate = sample_rate
        self._floor = floor
        self._distance = MelSpectrogramLoss(
            n_mels=list(bins),
            window_lengths=list(windows),
            mel_fmin=[0.0] * len(bins),
            mel_fmax=[None] * len(bins),
            mag_weight=0.0,
            pow=1.0,
            clamp_eps=floor,
        )

    def __call__(self, estimate: Tensor, reference: Tensor, floor: float | None = None) -> Tensor:
        """The mean over two `[B, C, N]`, a differentiable scalar; `floor`: None: as the distance was made."""
        rate = self._sample_rate
        self._distance.clamp_eps = self._floor if floor is None else floor
        distance: Tensor = self._distance(_Signal(estimate, rate), _Signal(reference, rate))
        return distance


class StftDistance:
    """DAC's multi-scale STFT distance (arXiv:2306.06546): `MultiScaleSTFTLoss`, by default the package's.

    Summed over windows are the mean absolute differences of the magnitudes, and of log10 of the squares of
    those above 1e-5.
    """

    def __init__(self, sample_rate: int, windows: Sequence[int] = STFT_WINDOWS) -> None:
        self._sample_rate = sample_rate
        self._distance: nn.Module = MultiScaleSTFTLoss(window_lengths=list(windows))

    def __call__(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """The mean over two `[B, C, N]`, a differentiable scalar."""
        rate = self._sample_rate
        distance: Tensor = self._distance(AudioSignal(estimate, rate), AudioSignal(reference, rate))
        return distance


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, `[B]` from two `[B, N]`.

    Le Roux et al., "SDR – half-baked or well done?", arXiv:1811.02508, eq. 5; means are removed first.
    """
    estimate = estimate - estimate.mean(-1, keepdim=True)
    reference = reference - reference.mean(-1, keepdim=True)
    energy = reference.square().sum(-1, keepdim=True).clamp(min=1e-12)
    target = (estimate * reference).sum(-1, keepdim=True) / energy * reference
    noise = (estimate - target).square().sum(-1).clamp(min=1e-12)
    return 10 * torch.log10(target.square().sum(-1).clamp(min=1e-12) / noise)


@dataclass(frozen=True)
class CodebookUse:
    """How evenly a codec's codes are used."""

    entropy_bits: list[float]
    """Of each codebook."""
    used: list[int]
    """Entries of each codebook that occur at all."""
    efficiency: float
    """Σ entropy / (K · log2 V): the share of the bitrate that carries information."""


def codebook_use(counts: Tensor) -> CodebookUse:
    """Entropy and use of each codebook from how often each entry occurs, `[K, V]`.

    Entropies of few codes are too low: with n codes, at most log2 n bits can be seen.
    """
    num_codebooks, codebook_size = counts.shape
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    entropies = (-torch.xlogy(share, share).sum(1) / math.log(2)).tolist()
    efficiency = sum(entropies) / (num_codebooks * math.log2(codebook_size))
    return CodebookUse(entropies, (counts > 0).sum(1).tolist(), efficiency)


def codebook_efficiency(codes: Tensor, codebook_size: int) -> CodebookUse:
    """`codebook_use` of codes `[B, K, T]`."""
    return codebook_use(codebook_counts(codes, codebook_size))


def codebook_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each entry of each codebook occurs in codes `[B, K, T]`: `[K, V]` int64."""
    return torch.stack([torch.bincount(one.flatten(), minlength=codebook_size) for one in codes.unbind(1)])
