"""Images of sound for adversarial models, and sound from images.

All have a frame for each `hop` samples, and one that is filled up with silence where the hop does not divide
the samples; `decode` gives `hop` samples for each frame, however many frames there are. Spectrograms have
window / 2 frequencies. See `short_time.py` for where frames lie.

What an image is divided by is found by `fit`, once, on real clips, and saved with the model; before that,
images are not a number. Everything is computed in float32, whatever `torch.autocast` says.

Shapes: B batch, F frequencies, T frames, N samples, D latent width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.schema_gan import (
    ComplexImage,
    InstantaneousFrequencyImage,
    LogMagnitudeImage,
    SpectralImage,
    WaveformImage,
)
from .mel_scale import gathering, spreading
from .networks.family import Shape
from .short_time import ShortTime, griffin_lim

LOG_OFFSET = 1e-6
"""SpecGAN's: added to a magnitude before its logarithm is taken."""
LOUDEST = 1.5
"""Instantaneous frequencies: log magnitudes of an image are read up to here, 25 dB above the loudest that
`fit` saw, so that what a network makes before it has learnt is loud but finite."""
CLIPS_AT_ONCE = 32
"""Clips that `fit` holds the spectra of."""
PEAK_QUANTILE = 0.99
"""Share of the clips whose loudest value an image holds within ±1."""


class Representation(nn.Module, ABC):
    """Images of clips. `encode` is not meant to be differentiated; `decode` can be."""

    sample_rate: int | None = None
    """In Hz; None for latents, whose codec knows."""

    @abstractmethod
    def shape(self, num_samples: int) -> Shape:
        """Of the image of a clip of so many samples (of latents: frames)."""

    @abstractmethod
    def fit(self, examples: Tensor) -> None:
        """Find the image's scale from real clips `[B, N]`."""

    @abstractmethod
    def encode(self, audio: Tensor) -> Tensor:
        """Clips `[B, N]` to images `[B, C, F, T]` or `[B, C, T]` of `shape(N)`."""

    @abstractmethod
    def decode(self, image: Tensor) -> Tensor:
        """Images to clips `[B, T · hop]`, which may be up to a hop longer than what was encoded."""


class Waveform(Representation):
    """The samples themselves, `[B, 1, N]`."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate

    def shape(self, num_samples: int) -> Shape:
        """One channel without frequencies."""
        return Shape(channels=1, num_bins=None, num_frames=num_samples)

    def fit(self, examples: Tensor) -> None:
        """Samples are between -1 and 1 as they are."""

    def encode(self, audio: Tensor) -> Tensor:
        """`[B, N]` to `[B, 1, N]`."""
        return audio[:, None]

    def decode(self, image: Tensor) -> Tensor:
        """`[B, 1, N]` to `[B, N]`."""
        return image[:, 0]


class Latents(Representation):
    """A codec's latents `[B, D, T]`, each dimension with mean 0 and standard deviation 1."""

    def __init__(self, latent_dim: int, num_frames: int) -> None:
        """`num_frames` of the clips that a model is trained on."""
        super().__init__()
        self.latent_dim, self.num_frames = latent_dim, num_frames
        self.register_buffer("mean", torch.full((latent_dim, 1), math.nan))
        self.register_buffer("std", torch.full((latent_dim, 1), math.nan))
        self.mean: Tensor
        self.std: Tensor

    def shape(self, num_samples: int) -> Shape:
        """As many channels as dimensions; `num_samples` are frames of the codec."""
        return Shape(channels=self.latent_dim, num_bins=None, num_frames=num_samples)

    def fit(self, examples: Tensor) -> None:
        """Mean and standard deviation of each dimension of `[B, D, T]`."""
        std, mean = torch.std_mean(examples.double(), dim=(0, 2), correction=0)
        self.mean.copy_(mean[:, None])
        self.std.copy_(std[:, None].clamp(min=1e-6))

    def encode(self, audio: Tensor) -> Tensor:
        """Latents `[B, D, T]`, normalised."""
        return (audio - self.mean) / self.std

    def decode(self, image: Tensor) -> Tensor:
        """Latents `[B, D, T]` as the codec has them."""
        return image * self.std + self.mean


class Spectrogram(Representation):
    """What all images of short-time spectra have in common."""

    num_channels: int

    def __init__(self, section: SpectralImage, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.num_bins = section.window // 2
        self.transform = ShortTime(section.window, section.hop)

    def shape(self, num_samples: int) -> Shape:
        """Half as many frequencies as the window has samples, or its mel bands, and a frame for each hop."""
        return Shape(self.num_channels, self.num_bins, self.transform.num_frames(num_samples))

    @torch.no_grad()
    def fit(self, examples: Tensor) -> None:
        """Find the image's scale from real clips `[B, N]`."""
        with torch.autocast(examples.device.type, enabled=False):
            self._fit(examples.float())

    def encode(self, audio: Tensor) -> Tensor:
        """Clips `[B, N]` to images `[B, C, F, T]`."""
        with torch.autocast(audio.device.type, enabled=False):
            return self._image(self.transform(audio.float()))

    def decode(self, image: Tensor) -> Tensor:
        """Images `[B, C, F, T]` to clips `[B, T · hop]`."""
        with torch.autocast(image.device.type, enabled=False):
            return self._audio(image.float())

    @abstractmethod
    def _fit(self, examples: Tensor) -> None:
        """What `fit` does."""

    @abstractmethod
    def _image(self, spectra: Tensor) -> Tensor:
        """The image of spectra `[B, F + 1, T]`."""

    @abstractmethod
    def _audio(self, image: Tensor) -> Tensor:
        """What `decode` does."""


class LogMagnitude(Spectrogram):
    """Log magnitudes without phases `[B, 1, F, T]` (SpecGAN, arXiv:1802.04208, sec. 3.3 and app. B).

    Each frequency has mean 0 and standard deviation 1, is clipped at `clip_std` and divided by it. The
    Nyquist frequency is left out.
    """

    num_channels = 1

    def __init__(self, section: LogMagnitudeImage, sample_rate: int) -> None:
        super().__init__(section, sample_rate)
        self.clip_std, self.num_steps = section.clip_std, section.griffin_lim_steps
        self.register_buffer("mean", torch.full((self.num_bins, 1), math.nan))
        self.register_buffer("std", torch.full((self.num_bins, 1), math.nan))
        self.mean: Tensor
        self.std: Tensor

    def _logs(self, spectra: Tensor) -> Tensor:
        return (spectra[:, : self.num_bins].abs() + LOG_OFFSET).log()

    def _fit(self, examples: Tensor) -> None:
        logs = [self._logs(self.transform(part)) for part in examples.tensor_split(_num_parts(examples))]
        num_values = len(examples) * self.transform.num_frames(examples.shape[1])
        mean = torch.stack([part.double().sum((0, 2)) for part in logs]).sum(0)[:, None] / num_values
        squares = torch.stack([(part - mean).square().sum((0, 2)) for part in logs]).sum(0)
        self.mean.copy_(mean)
        self.std.copy_((squares / num_values).sqrt()[:, None].clamp(min=1e-3))

    def _image(self, spectra: Tensor) -> Tensor:
        image = (self._logs(spectra) - self.mean) / (self.std * self.clip_std)
        return image.clamp(-1.0, 1.0)[:, None]

    def _audio(self, image: Tensor) -> Tensor:
        logs = image[:, 0].clamp(-1.0, 1.0) * (self.std * self.clip_std) + self.mean
        magnitudes = (logs.exp() - LOG_OFFSET).clamp(min=0.0)
        return griffin_lim(nn.functional.pad(magnitudes, (0, 0, 0, 1)), self.transform, self.num_steps)


class Complex(Spectrogram):
    """Real and imaginary parts `[B, 2, F, T]` (DrumGAN, arXiv:2008.12073, sec. 4.2).

    The lowest and the Nyquist frequency have real values only, so the latter's stand as imaginary parts of
    the former, and nothing is lost. Magnitudes are raised to `section.power`, and divided by the loudest
    that `fit` saw.
    """

    num_channels = 2

    def __init__(self, section: ComplexImage, sample_rate: int) -> None:
        super().__init__(section, sample_rate)
        self.power = section.power
        self.register_buffer("scale", torch.tensor(math.nan))
        self.scale: Tensor

    def _parts(self, spectra: Tensor) -> Tensor:
        """`[B, 2, F, T]`, not scaled."""
        imaginary = torch.cat([spectra.real[:, -1:], spectra.imag[:, 1:-1]], 1)
        return _raised(torch.stack([spectra.real[:, :-1], imaginary], 1), self.power)

    def _fit(self, examples: Tensor) -> None:
        parts = examples.tensor_split(_num_parts(examples))
        self.scale.copy_(_peak([self._parts(self.transform(part)).abs() for part in parts]))

    def _image(self, spectra: Tensor) -> Tensor:
        return self._parts(spectra) / self.scale

    def _audio(self, image: Tensor) -> Tensor:
        real, imaginary = _raised(image * self.scale, 1.0 / self.power).unbind(1)
        nyquist, none = imaginary[:, :1], torch.zeros_like(imaginary[:, :1])
        return self.transform.inverse(
            torch.complex(torch.cat([real, nyquist], 1), torch.cat([none, imaginary[:, 1:], none], 1))
        )


class InstantaneousFrequency(Spectrogram):
    """Log magnitudes, and what phases advance by from frame to frame over π, `[B, 2, F, T]` (GANSynth,
    arXiv:1902.08710, sec. 2.3).

    The first frame has its phase itself. The Nyquist frequency is left out. Log magnitudes are log(|X| + ε),
    with ε `section.range_db` below the loudest magnitude that `fit` saw: -1 is silence and 1 the loudest.

    With `section.advance` "phasor" an image is `[B, 3, F, T]`: log magnitudes m, n cos δ and n sin δ, with
    n = (m + 1) / 2 and δ what a phase advances by beyond a sinusoid in the middle of the bin or band. Around
    the peak of a steady partial, δ depends on the distance from the peak alone, so convolutions can make it
    without knowing where they are.

    On the mel scale (see `mel_scale.py`) a band's magnitude is the root of its mean power. Its instantaneous
    frequency is that of its summed products X[t] · conj(X[t - 1]), which the loudest partial decides;
    GANSynth's is the mean of unwrapped phases, where the noise beside a partial counts as much as the
    partial.

    Of 24 synthesised notes of 1.024 s at 16 kHz, a window of 512 and a hop of 128, what comes back on the mel
    scale (256 bands) has an SI-SDR of 45 dB in the mean, and 31 dB with GANSynth's bands and means; all keep
    their pitch. With a window of 1024, a hop of 256 and 128 bands, a quarter of the numbers, it is 20 dB.
    """

    def __init__(self, section: InstantaneousFrequencyImage, sample_rate: int) -> None:
        super().__init__(section, sample_rate)
        self.as_phasor = section.advance == "phasor"
        self.relative_offset = 10 ** (-section.range_db / 20)  # of the peak: what is added to a magnitude
        self.span = math.log1p(1 / self.relative_offset)  # from silence to the loudest, in nepers
        self.num_channels = 3 if self.as_phasor else 2
        spread = None
        if section.num_mels is not None:
            spread = spreading(self.num_bins, sample_rate / section.window, section.num_mels)
            self.num_bins = section.num_mels
        middles = torch.arange(section.window // 2, dtype=torch.float64)
        middles = middles if spread is None else spread.double() @ middles
        expected = (middles * (2.0 * math.pi * section.hop / section.window)).remainder(2.0 * math.pi)
        # What the phase of a sinusoid in the middle of each bin or band advances by.
        self.register_buffer("expected", expected.float()[:, None], persistent=False)
        self.register_buffer("spread", spread, persistent=False)
        self.register_buffer("gather", None if spread is None else gathering(spread), persistent=False)
        self.register_buffer("peak", torch.tensor(math.nan))
        self.spread: Tensor | None
        self.gather: Tensor | None
        self.expected: Tensor
        self.peak: Tensor

    def _magnitudes(self, spectra: Tensor) -> Tensor:
        if self.spread is None:
            return spectra.abs()
        return (self.spread @ (spectra.real.square() + spectra.imag.square())).sqrt()

    def _advances(self, spectra: Tensor) -> Tensor:
        """What phases advance by, `[B, F, T]` in radians within ±π."""
        first = torch.ones_like(spectra[..., :1])
        products = spectra * torch.cat([first, spectra[..., :-1]], -1).conj()
        if self.spread is None:
            return products.angle()
        return torch.atan2(self.spread @ products.imag, self.spread @ products.real)

    def _fit(self, examples: Tensor) -> None:
        parts = examples.tensor_split(_num_parts(examples))
        self.peak.copy_(_peak([self._magnitudes(self.transform(part)[:, :-1]) for part in parts]))

    def _offset(self) -> Tensor:
        return self.peak * self.relative_offset

    def _image(self, spectra: Tensor) -> Tensor:
        spectra = spectra[:, :-1]
        magnitudes = (self._magnitudes(spectra) / self._offset()).log1p() * (2.0 / self.span) - 1.0
        advances = self._advances(spectra)
        if not self.as_phasor:
            return torch.stack([magnitudes, advances / math.pi], 1)
        beyond, shares = advances - self.expected, (magnitudes + 1.0) / 2.0
        return torch.stack([magnitudes, shares * beyond.cos(), shares * beyond.sin()], 1)

    def _audio(self, image: Tensor) -> Tensor:
        levels = (image[:, 0].clamp(-1.0, LOUDEST) + 1.0) * (self.span / 2.0)
        magnitudes = self._offset() * levels.expm1()
        if self.as_phasor:
            # Where both are 0, no angle has a gradient.
            advances = torch.atan2(image[:, 2], image[:, 1] + 1e-12) + self.expected
        else:
            advances = math.pi * image[:, 1]
        if self.gather is not None:
            powers = magnitudes.square().clamp(min=1e-12)  # where all is silent, no phase has a gradient
            real, imaginary = self.gather @ (powers * advances.cos()), self.gather @ (powers * advances.sin())
            magnitudes, advances = (self.gather @ powers).sqrt(), torch.atan2(imaginary, real)
        # Thousands of frames of up to half a turn each: float32 would lose the phase on the way.
        phases = advances.double().cumsum(-1).remainder(2.0 * math.pi).float()
        return self.transform.inverse(nn.functional.pad(torch.polar(magnitudes, phases), (0, 0, 0, 1)))


def _num_parts(examples: Tensor) -> int:
    return math.ceil(len(examples) / CLIPS_AT_ONCE)


def _peak(parts: list[Tensor]) -> Tensor:
    """The loudest value, but for a share of the clips."""
    loudest = torch.cat([part.flatten(1).amax(1) for part in parts])
    return loudest.quantile(PEAK_QUANTILE).clamp(min=1e-6)


def _raised(parts: Tensor, power: float) -> Tensor:
    """Complex numbers `[B, 2, F, T]` with their magnitudes raised to a power and their phases kept."""
    if power == 1.0:
        return parts
    squares = parts.square().sum(1, keepdim=True).clamp(min=1e-20)
    return parts * squares ** ((power - 1.0) / 2.0)


def make_representation(
    section: WaveformImage | LogMagnitudeImage | ComplexImage | InstantaneousFrequencyImage,
    sample_rate: int,
    num_samples: int,
) -> Representation:
    """For clips of `num_samples` samples at `sample_rate` Hz; raises `UserError` if a window is longer."""
    if isinstance(section, WaveformImage):
        return Waveform(sample_rate)
    if section.window > num_samples:
        raise UserError(
            f"model.representation.window {section.window} is longer than the clips of {num_samples} samples:"
            " choose a shorter window or longer clips"
        )
    match section:
        case LogMagnitudeImage():
            return LogMagnitude(section, sample_rate)
        case ComplexImage():
            return Complex(section, sample_rate)
        case InstantaneousFrequencyImage():
            return InstantaneousFrequency(section, sample_rate)
