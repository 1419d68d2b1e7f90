"""Oobleck as a variational autoencoder to train, saved as diffusers reads it.

Shapes: B batch, C channels, N samples, D latent width, T frames.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.schema import VaeModel
from ..families.codec_dac import with_parametrized_weight_norm

_PARAMETRIZED = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}

# Of diffusers' posterior: no standard deviation is smaller.
_SCALE_FLOOR = 1e-4


@dataclass(frozen=True)
class VaeOutput:
    """What one pass through a VAE gives."""

    audio: Tensor  # [B, C, N]
    mean: Tensor  # [B, D, T] of the posterior
    scale: Tensor  # [B, D, T], its standard deviations


class OobleckVae(nn.Module):
    """`diffusers.AutoencoderOobleck` to train: encode, sample the posterior, decode."""

    def __init__(self, config: VaeModel) -> None:
        super().__init__()
        self.oobleck = with_parametrized_weight_norm(lambda: _oobleck(config))

    def forward(self, audio: Tensor, noise: Tensor | None = None) -> VaeOutput:
        """Audio `[B, C, N]`, N a multiple of the hop length; the decoded audio has as many samples.

        Decoded is the posterior's sample that `noise` `[B, D, T]` from N(0, I) makes, or its mean.
        """
        # In fp32 from here on, whatever the precision of convolutions: a small scale's logarithm needs it.
        mean, raw_scale = self.oobleck.encoder(audio).float().chunk(2, dim=1)
        scale = F.softplus(raw_scale) + _SCALE_FLOOR
        # Reparametrisation, arXiv:1312.6114, eq. 10.
        latents = mean if noise is None else mean + scale * noise
        decoded: Tensor = self.oobleck.decoder(latents).float()
        # Decoders with odd strides come out a few samples short.
        decoded = F.pad(decoded, (0, audio.shape[-1] - decoded.shape[-1]))
        return VaeOutput(decoded, mean, scale)


def _oobleck(config: VaeModel) -> AutoencoderOobleck:
    """Freshly initialised, with the deprecated weight norm, whose names are those of saved weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm. is deprecated", category=FutureWarning)
        return AutoencoderOobleck(
            encoder_hidden_size=2 * config.latent_dim,
            downsampling_ratios=list(config.encoder_rates),
            channel_multiples=list(config.channel_multiples),
            decoder_channels=config.decoder_dim,
            decoder_input_channels=config.latent_dim,
            audio_channels=config.channels,
            sampling_rate=config.sample_rate_hz,
        )


def hop_length(config: VaeModel) -> int:
    """Samples a frame."""
    return math.prod(config.encoder_rates)


def save_oobleck(vae: OobleckVae, folder: Path, config: VaeModel) -> None:
    """Write `config.json` and the weights as `AutoencoderOobleck.from_pretrained` reads them."""
    hub = _oobleck(config)
    weights = {}
    for name, tensor in vae.oobleck.state_dict().items():
        for parametrized, plain in _PARAMETRIZED.items():
            name = name.replace(parametrized, plain)
        weights[name] = tensor.cpu()
    hub.load_state_dict(weights)
    nn.Module.to(
        hub, getattr(torch, config.store)
    )  # diffusers' own would warn of a format that it cannot know of
    hub.save_pretrained(folder)
