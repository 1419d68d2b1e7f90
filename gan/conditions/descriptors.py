"""Seven features of timbre as numbers, after those that DrumGAN is told (arXiv:2008.12073).

DrumGAN takes them from the AudioCommons project's models (deliverable D5.8), which are regressions on
listeners' ratings. Here are what those regress on, in one formula each, from audio alone:

| feature | formula | range |
|---|---|---|
| boominess | share of the specific loudness below 4 Bark, weighted by 1 − z/4 | 0 … 1 |
| brightness | mean of amplitude's share above 2 kHz and of its centroid above 100 Hz in Bark / 24 | 0 … 1 |
| depth | octaves by which amplitude lies below 200 Hz, on average; 0 for what lies above | 0 … 3.3 |
| hardness | mean of the steepest rise and of the centroid in Bark / 24 of the 40 ms after it | 0 … 1 |
| roughness | dissonance of pairs of spectral peaks | ≥ 0 |
| sharpness | weighted centroid of the specific loudness (DIN 45692), acum | ≥ 0 |
| warmth | share of amplitude between 150 and 800 Hz | 0 … 1 |

*Amplitude* is the root of the mean power of a frequency over the clip, and a Bark band's *specific loudness*
is its energy to the power of 0.23 (Zwicker and Fastl, Psychoacoustics, ch. 8) without the thresholds that
would make it depend on the level. All are the same however loud a clip is, and 0 for digital silence.

Shapes: B clips, N samples, F frequencies, T frames, P peaks, Z Bark bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.conditions import Condition
from ...core.errors import UserError

DESCRIPTORS = ("boominess", "brightness", "depth", "hardness", "roughness", "sharpness", "warmth")
"""The features, in the order of `raw_descriptors`."""

_WINDOW_S = 0.128  # fine enough for the low bands and for partials that beat 30 times a second
_SILENCE = 1e-7  # peaks below this are what filters and transforms leave of nothing
_RANGE_DB = 70.0  # bands this far below the loudest are what windows leak
_NUM_BARKS = 24
_LOUDNESS_EXPONENT = 0.23

_ENVELOPE_S = 0.004
_ATTACK_S = 0.040
_STEEPEST_PER_S = 1 / (2 * _ENVELOPE_S)  # from nothing to all within two steps of the envelope

_NUM_PEAKS = 24
_LEAST_PEAK = 0.01  # of a frame's highest

_LOW, _HIGH = 0.02, 0.98


@torch.no_grad()
def raw_descriptors(audio: Tensor, sample_rate: int) -> Tensor:
    """Audio `[B, N]` to the features `[B, 7]` in the order of `DESCRIPTORS`, as the table above has them."""
    peak = audio.abs().amax(dim=1, keepdim=True)
    audible = peak > _SILENCE
    audio = torch.where(audible, audio / peak.clamp(min=_SILENCE), 0.0).float()
    window = 2 ** math.ceil(math.log2(_WINDOW_S * sample_rate))
    magnitudes = _magnitudes(audio, window, window // 4)
    frequencies = torch.arange(window // 2 + 1, device=audio.device) * (sample_rate / window)
    amplitude = magnitudes.square().mean(dim=2).sqrt()  # [B, F]
    loudness = _specific_loudness(amplitude.square(), frequencies)
    features = torch.stack(
        [
            _boominess(loudness),
            _brightness(amplitude, frequencies),
            _depth(amplitude, frequencies),
            _hardness(audio, sample_rate),
            _roughness(magnitudes, frequencies),
            _sharpness(loudness),
            _share(amplitude, (frequencies >= 150) & (frequencies <= 800)),
        ],
        dim=1,
    )
    return torch.where(audible, features, 0.0)


def _magnitudes(audio: Tensor, window: int, hop: int) -> Tensor:
    """`[B, F, T]`; what lies before and after the clip is silence."""
    hann = torch.hann_window(window, device=audio.device)
    spectrum = torch.stft(
        audio, window, hop, window=hann, center=True, pad_mode="constant", return_complex=True
    )
    return spectrum.abs() / hann.sum()


# Traunmüller, Journal of the Acoustical Society of America 88(1), 1990, without its end corrections.
def _bark(frequencies: Tensor) -> Tensor:
    return (26.81 * frequencies / (1960 + frequencies) - 0.53).clamp(min=0)


def _specific_loudness(power: Tensor, frequencies: Tensor) -> Tensor:
    """`[B, Z]` of a power spectrum `[B, F]`, on a scale of its own."""
    band = _bark(frequencies).long().clamp(max=_NUM_BARKS - 1)
    energy = power.new_zeros(len(power), _NUM_BARKS).index_add(1, band, power)
    floor = energy.amax(dim=1, keepdim=True) * 10 ** (-_RANGE_DB / 10)
    return torch.where(energy > floor, energy, 0.0) ** _LOUDNESS_EXPONENT


def _band_centres(like: Tensor) -> Tensor:
    return torch.arange(_NUM_BARKS, device=like.device) + 0.5


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """`[B]` of values `[n]` or `[B, n]`, weighted by `[B, n]`; 0 without any weight."""
    total = weights.sum(dim=1)
    return (values * weights).sum(dim=1) / torch.where(total > 0, total, 1.0)


def _share(weights: Tensor, chosen: Tensor) -> Tensor:
    return _mean(chosen.to(weights), weights)


def _boominess(loudness: Tensor) -> Tensor:
    return _mean((1 - _band_centres(loudness) / 4).clamp(min=0), loudness)


def _brightness(amplitude: Tensor, frequencies: Tensor) -> Tensor:
    heard = amplitude * (frequencies >= 100)
    centroid = _bark(_mean(frequencies, heard)) / _NUM_BARKS
    return (_share(heard, frequencies > 2000) + centroid) / 2


def _depth(amplitude: Tensor, frequencies: Tensor) -> Tensor:
    # Below 20 Hz nothing is heard.
    return _mean(torch.log2(200 / frequencies.clamp(20, 200)), amplitude * (frequencies >= 20))


# DIN 45692:2009, with the specific loudness from above.
def _sharpness(loudness: Tensor) -> Tensor:
    z = _band_centres(loudness)
    weight = torch.where(z > 15.8, 0.15 * torch.exp(0.42 * (z - 15.8)) + 0.85, 1.0)
    return 0.11 * _mean(weight * z, loudness)


def _hardness(audio: Tensor, sample_rate: int) -> Tensor:
    step = max(1, round(_ENVELOPE_S * sample_rate))
    # Before a clip there is silence, so that one that begins with its attack has one.
    padded = F.pad(audio, (2 * step, step + -audio.shape[1] % step))
    envelope = padded.reshape(len(padded), -1, step).square().mean(dim=2).sqrt()  # [B, T]
    envelope = (envelope[:, 1:] + envelope[:, :-1]) / 2
    rise, at = (envelope[:, 1:] - envelope[:, :-1]).max(dim=1)
    highest = envelope.amax(dim=1)
    slope = rise * (sample_rate / step) / torch.where(highest > 0, highest, 1.0)
    steepness = torch.log2(1 + slope) / math.log2(1 + _STEEPEST_PER_S)
    length = max(2, round(_ATTACK_S * sample_rate))
    # `at` is where the rise begins, in steps of the padded clip.
    inside = at[:, None] * step + torch.arange(length, device=audio.device)
    attack = F.pad(padded, (0, length)).gather(1, inside)
    spectrum = torch.fft.rfft(attack * torch.hann_window(length, device=audio.device)).abs()
    frequencies = torch.arange(spectrum.shape[1], device=audio.device) * (sample_rate / length)
    return (steepness.clamp(0, 1) + _bark(_mean(frequencies, spectrum)) / _NUM_BARKS) / 2


# Vassilakis, Perceptual and Physical Properties of Amplitude Fluctuation (UCLA, 2001), ch. 6, with
# amplitudes relative to a frame's highest peak; frames count by how loud they are.
def _roughness(magnitudes: Tensor, frequencies: Tensor) -> Tensor:
    middle = magnitudes[:, 1:-1]
    is_peak = (middle > magnitudes[:, :-2]) & (middle >= magnitudes[:, 2:])
    found = torch.where(is_peak, middle, 0.0).transpose(1, 2)  # [B, T, F - 2]
    amplitude, place = found.topk(min(_NUM_PEAKS, found.shape[2]), dim=2)
    highest = amplitude[..., :1]
    amplitude = amplitude / torch.where(highest > 0, highest, 1.0)
    amplitude = torch.where(amplitude >= _LEAST_PEAK, amplitude, 0.0)
    frequency = frequencies[place + 1]
    # Peaks come in descending order, so the later of a pair is the weaker one.
    first, second = torch.triu_indices(amplitude.shape[2], amplitude.shape[2], 1, device=magnitudes.device)
    high, low = amplitude[..., first], amplitude[..., second]
    lower = torch.minimum(frequency[..., first], frequency[..., second])
    distance = (frequency[..., first] - frequency[..., second]).abs()
    scaled = distance * 0.24 / (0.0207 * lower + 18.96)
    beating = torch.exp(-3.5 * scaled) - torch.exp(-5.75 * scaled)
    together = torch.where(high > 0, high + low, 1.0)
    pairs = (high * low) ** 0.1 * 0.5 * (2 * low / together) ** 3.11 * beating
    return _mean(pairs.sum(dim=2), magnitudes.square().sum(dim=1).sqrt())


@dataclass(frozen=True)
class DescriptorScale:
    """Features as numbers from 0 to 1, of which real clips fill the range."""

    low: tuple[float, ...]
    """What becomes 0, in the order of `DESCRIPTORS`."""
    high: tuple[float, ...]
    """What becomes 1."""

    @classmethod
    def fit(cls, raw: Tensor) -> Self:
        """Between the 2nd and the 98th percentile of the features `[n, 7]` of real clips.

        Raises `UserError` if there are none.
        """
        if not len(raw):
            raise UserError("there are no clips to find the range of timbre features in")
        bounds = torch.quantile(raw.double(), torch.tensor([_LOW, _HIGH], dtype=torch.float64), dim=0)
        return cls(tuple(bounds[0].tolist()), tuple(bounds[1].tolist()))

    def to_unit(self, raw: Tensor) -> Tensor:
        """Features `[B, 7]` to 0 … 1; what lies beyond the range is at its end, and a feature that all real
        clips have alike is 0.5."""
        low, high = raw.new_tensor(self.low), raw.new_tensor(self.high)
        varies = high > low
        unit = (raw - low) / torch.where(varies, high - low, 1.0)
        return torch.where(varies, unit.clamp(0, 1), 0.5)

    def to_json(self) -> dict[str, Any]:
        """By feature, what becomes 0 and what becomes 1."""
        return {name: list(pair) for name, *pair in zip(DESCRIPTORS, self.low, self.high, strict=True)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Undo `to_json`; raises `UserError` if it is something else."""
        try:
            pairs = [(float(low), float(high)) for low, high in (found[name] for name in DESCRIPTORS)]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the model's range of timbre features cannot be read: {error!r}") from error
        return cls(tuple(low for low, _ in pairs), tuple(high for _, high in pairs))


def descriptor_conditions(names: Sequence[str]) -> tuple[Condition, ...]:
    """What a model is told of features that `DescriptorScale` has brought to 0 … 1."""
    return tuple(Condition(name, "number", width=2, maximum=1.0) for name in names)
