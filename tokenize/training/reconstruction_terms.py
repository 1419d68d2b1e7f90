"""How far decoded audio is from what was encoded: the terms of a codec's loss, each on its own.

Shapes: B batch, N samples.
"""

from __future__ import annotations

from torch import Tensor

from ...core.schema_trained_codecs import RvqModel
from ..fidelity import MelDistance, StftDistance

# Digital silence has no mean amplitude to relate an error to.
_LEAST_AMPLITUDE = 1e-4


class ReconstructionTerms:
    """Multi-scale log-mel and STFT distances and the waveform's error, where they have a weight."""

    def __init__(self, config: RvqModel, num_steps: int) -> None:
        self._config = config
        self._num_steps = num_steps
        self._mel = MelDistance(
            config.sample_rate_hz, config.mel_floor, tuple(config.mel_windows), tuple(config.mel_bins)
        )
        self._stft = StftDistance(config.sample_rate_hz)
        given = {"mel": config.mel_weight, "stft": config.stft_weight, "waveform": config.waveform_weight}
        self.weights = {name: weight for name, weight in given.items() if weight}

    def __call__(self, decoded: Tensor, audio: Tensor, step: int) -> dict[str, Tensor]:
        """Scalars by the names in `weights`, for two `[B, 1, N]`."""
        terms = {}
        if "mel" in self.weights:
            terms["mel"] = self._mel(decoded, audio, mel_floor(self._config, step, self._num_steps))
        if "stft" in self.weights:
            terms["stft"] = self._stft(decoded, audio)
        if "waveform" in self.weights:
            terms["waveform"] = waveform_error(decoded, audio)
        return terms


def mel_floor(config: RvqModel, step: int, num_steps: int) -> float:
    """From `mel_floor` to `mel_floor_end`, by the same factor in each step; `step` counts from 0."""
    if config.mel_floor_end is None:
        return config.mel_floor
    ratio = config.mel_floor_end / config.mel_floor
    return float(config.mel_floor * ratio ** (step / max(1, num_steps - 1)))


def waveform_error(decoded: Tensor, audio: Tensor) -> Tensor:
    """Mean absolute error relative to the mean absolute amplitude; 1 is that of silence."""
    return (decoded - audio).abs().mean() / audio.abs().mean().clamp(min=_LEAST_AMPLITUDE)
