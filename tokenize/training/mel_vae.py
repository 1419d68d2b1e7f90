"""A small variational autoencoder of single notes: one vector of latents for a whole log-mel spectrogram.

The textbook's case (arXiv:1312.6114): encoder and decoder are multilayer perceptrons, prior and posterior are
Gaussians with diagonal covariance, and the likelihood of a spectrogram is a Gaussian of variance 1 about the
decoder's output. It is heard through Griffin and Lim's algorithm, which finds a phase (IEEE Transactions on
Acoustics, Speech and Signal Processing 32(2), 1984).

Shapes: B batch, N samples, M mel bands, T frames, D latent width.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.transforms import GriffinLim, InverseMelScale, MelSpectrogram

from ...core.errors import UserError
from ...core.files import write_json
from .posterior import kl_from_prior

KIND = "mel_vae"
_WEIGHTS = "model.safetensors"

_FLOOR = 1e-3  # of mel magnitudes; a full-scale sine's is a quarter of the window's length
_NUM_ITERATIONS = 64


@dataclass(frozen=True)
class MelVaeConfig:
    """What decides the network and its spectrogram; `config.json`."""

    sample_rate_hz: int
    note_samples: int
    """Length of a note."""
    latent_dim: int
    hidden_dim: int
    num_mels: int
    window: int
    """Samples; windows overlap by three quarters."""
    log_mel_mean: float = 0.0
    """Of training notes, by which spectrograms are standardised."""
    log_mel_std: float = 1.0

    @property
    def num_frames(self) -> int:
        """Frames of a note's spectrogram."""
        return 1 + self.note_samples // (self.window // 4)


@dataclass(frozen=True)
class MelVaeOutput:
    """What one pass gives."""

    decoded: Tensor  # [B, M, T], standardised
    mean: Tensor  # [B, D]
    scale: Tensor  # [B, D], standard deviations


class MelVae(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: MelVaeConfig) -> None:
        super().__init__()
        self.config = config
        size = config.num_mels * config.num_frames
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, config.hidden_dim),
            nn.SiLU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.SiLU(),
            nn.Linear(config.hidden_dim, 2 * config.latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent_dim, config.hidden_dim),
            nn.SiLU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.SiLU(),
            nn.Linear(config.hidden_dim, size),
            nn.Unflatten(1, (config.num_mels, config.num_frames)),
        )

    def forward(self, spectrogram: Tensor, noise: Tensor | None = None) -> MelVaeOutput:
        """Standardised log-mel spectrograms `[B, M, T]`.

        Decoded is the posterior's sample that `noise` `[B, D]` from N(0, I) makes, or its mean.
        """
        mean, raw_scale = self.encoder(spectrogram).chunk(2, dim=1)
        scale = F.softplus(raw_scale)
        # Reparametrisation, arXiv:1312.6114, eq. 4.
        latents = mean if noise is None else mean + scale * noise
        return MelVaeOutput(self.decoder(latents), mean, scale)

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Audio `[B, N]` to standardised log-mel spectrograms `[B, M, T]`."""
        config = self.config
        mel: Tensor = MelSpectrogram(
            config.sample_rate_hz,
            config.window,
            hop_length=config.window // 4,
            n_mels=config.num_mels,
            power=1,
        )(audio)
        log_mel: Tensor = mel.clamp(min=_FLOOR).log()
        return (log_mel - config.log_mel_mean) / config.log_mel_std

    def audio(self, spectrogram: Tensor) -> Tensor:
        """Standardised log-mel spectrograms `[B, M, T]` to audio `[B, N]`.

        Phases begin at random values of PyTorch's global generator.
        """
        config = self.config
        mel = (spectrogram * config.log_mel_std + config.log_mel_mean).exp()
        # What is at the floor is silence.
        mel = torch.where(mel > 2 * _FLOOR, mel, 0.0)
        magnitudes = InverseMelScale(config.window // 2 + 1, config.num_mels, config.sample_rate_hz)(mel)
        griffin_lim = GriffinLim(
            config.window, _NUM_ITERATIONS, hop_length=config.window // 4, power=1, length=config.note_samples
        )
        audio: Tensor = griffin_lim(magnitudes)
        return audio

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        named = {"model_type": KIND, "architectures": [type(self).__name__]}
        write_json(folder / "config.json", named | dataclasses.asdict(self.config))
        save_file({name: tensor.cpu() for name, tensor in self.state_dict().items()}, folder / _WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; raises `UserError` if it is damaged."""
        try:
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            del values["model_type"], values["architectures"]
            vae = cls(MelVaeConfig(**values))
            vae.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder} holds no whole VAE of kind {KIND}: {error}") from error
        return vae.eval()


# arXiv:1312.6114, eq. 10, with one sample, a likelihood of variance 1 and β (Higgins et al., ICLR 2017).
def negative_elbo(spectrogram: Tensor, out: MelVaeOutput, beta: float) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of `spectrogram` `[B, M, T]` and β times the divergence, nats a note."""
    size = spectrogram[0].numel()
    squared = (out.decoded - spectrogram).square().sum((1, 2))
    likelihood = 0.5 * (squared + size * math.log(2 * math.pi))
    return likelihood.mean(), beta * kl_from_prior(out.mean, out.scale).sum(1).mean()
