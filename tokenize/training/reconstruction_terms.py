"""How far decoded audio is from what was encoded: the terms of a codec's loss, each on its own.

All are means over clips, so that it does not matter how a batch is shared out.

Shapes: B batch, C channels, N samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.schema_trained_codecs import ReconstructingCodec
from ..fidelity import MelDistance, StftDistance

# Digital silence has no mean amplitude to relate an error to.
_LEAST_AMPLITUDE = 1e-4

LEVEL = "level"
"""The metric that tells how loud decoded audio is, relative to the corpus: about 1, and 0 of silence."""


class ReconstructionTerms:
    """Multi-scale log-mel and STFT distances and the waveform's error, where they have a weight."""

    def __init__(self, config: ReconstructingCodec, num_steps: int, examples: Tensor) -> None:
        """`examples` `[B, C, N]` of the corpus say what its amplitude is."""
        self._config = config
        self._num_steps = num_steps
        self._amplitude = examples.abs().mean().clamp(min=_LEAST_AMPLITUDE).item()
        self._mel = MelDistance(
            config.sample_rate_hz, config.mel_floor, tuple(config.mel_windows), tuple(config.mel_bins)
        )
        self._stft = StftDistance(config.sample_rate_hz, tuple(config.stft_windows))
        given = {"mel": config.mel_weight, "stft": config.stft_weight, "waveform": config.waveform_weight}
        self.weights = {name: weight for name, weight in given.items() if weight}

    def __call__(self, decoded: Tensor, audio: Tensor, step: int) -> dict[str, Tensor]:
        """Scalars by the names in `weights`, for two `[B, C, N]`."""
        terms = {}
        heard, wanted = with_mid_and_side(decoded), with_mid_and_side(audio)
        if "mel" in self.weights:
            terms["mel"] = self._mel(heard, wanted, mel_floor(self._config, step, self._num_steps))
        if "stft" in self.weights:
            terms["stft"] = self._stft(heard, wanted)
        if "waveform" in self.weights:
            # Of silence it is 1 on average. Relative to each clip's own amplitude, quiet ones would rule.
            terms["waveform"] = (decoded - audio).abs().mean() / self._amplitude
        return terms

    def level(self, decoded: Tensor) -> Tensor:
        """The metric `LEVEL`."""
        return decoded.detach().abs().mean() / self._amplitude


def mel_floor(config: ReconstructingCodec, step: int, num_steps: int) -> float:
    """From `mel_floor` to `mel_floor_end`, by the same factor in each step; `step` counts from 0."""
    if config.mel_floor_end is None:
        return config.mel_floor
    ratio = config.mel_floor_end / config.mel_floor
    return float(config.mel_floor * ratio ** (step / max(1, num_steps - 1)))


def with_mid_and_side(audio: Tensor) -> Tensor:
    """Stereo `[B, 2, N]` with its sum and its difference as further channels, mono as it is.

    Spectra of left and right alone do not tell where a sound stands (arXiv:2010.10291).
    """
    if audio.shape[1] == 1:
        return audio
    left, right = audio[:, :1], audio[:, 1:]
    return torch.cat([left, right, left + right, left - right], dim=1)
