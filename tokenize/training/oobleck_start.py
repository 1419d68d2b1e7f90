"""An Oobleck that begins as a linear transform of its audio instead of as noise.

As `lapped_start.py` does with a DAC: the strides deal samples out to channels, and the last one is a modified
discrete cosine transform. A VAE has fewer latents than a frame has samples, so these hold the strongest
principal components of the coefficients of example audio (the Karhunen-Loève transform), scaled to unit
variance as the prior is.

Shapes: B batch, C channels, N samples, D latent width, T frames.
"""

from __future__ import annotations

import math

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckResidualUnit, Snake1d
from torch import Tensor, nn

from .lapped_start import Wiring, mdct
from .oobleck_vae import OobleckVae

# Snake is x + sin²(αx)/α, which for small α is x.
_ALPHA = 0.05
_RESIDUAL_GAIN = 0.05

# Standard deviation of the posterior at first, beside a variance of 1 of its means.
_SCALE = 0.1


@torch.no_grad()
def start_as_transform(vae: OobleckVae, audio: Tensor) -> None:
    """Set the weights of a fresh `vae` by the example `audio` `[B, C, N]`.

    Raises `ValueError` if the network is too narrow to deal its samples out to channels.
    """
    encoder, decoder = vae.oobleck.encoder, vae.oobleck.decoder
    for module in vae.modules():
        if isinstance(module, Snake1d):
            nn.init.constant_(module.alpha, math.log(_ALPHA))
            nn.init.constant_(module.beta, math.log(_ALPHA))
        elif isinstance(module, OobleckResidualUnit):
            module.conv2.weight *= _RESIDUAL_GAIN
        elif isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    rates = [block.conv1.stride[0] for block in encoder.block]
    hop, num_channels = math.prod(rates), audio.shape[1]
    latent_dim = encoder.conv2.out_channels // 2

    wiring = Wiring()
    # offsets[c] and sides[c]: which sample of a block of samples channel c holds, and of which audio channel.
    sides, offsets = torch.arange(num_channels), torch.zeros(num_channels, dtype=torch.int64)
    wiring.connect(encoder.conv1, sides, sides, torch.eye(num_channels), tap=3)
    wiring.connect(decoder.conv2, sides, sides, torch.eye(num_channels), tap=3)
    for i, rate in enumerate(rates[:-1]):
        channels = torch.arange(len(offsets))
        down, up = encoder.block[i].conv1, decoder.block[len(rates) - 1 - i].conv_t1
        if len(offsets) * rate > min(down.out_channels, up.in_channels):
            raise ValueError(
                f"{min(down.out_channels, up.in_channels)} channels cannot hold the {len(offsets) * rate}"
                f" samples of a frame at stride {i + 1}: widen the network, put its larger strides last, or"
                " set model.start to random"
            )
        pad, identity = math.ceil(rate / 2), torch.eye(len(offsets))
        for r in range(rate):
            dealt = channels + r * len(offsets)
            wiring.connect(down, dealt, channels, identity, tap=pad + r)
            wiring.connect(up, channels, dealt, identity, tap=pad + r)
        block = math.prod(rates[:i])
        offsets = torch.cat([offsets + r * block for r in range(rate)])
        sides = sides.repeat(rate)

    down, up = encoder.block[-1].conv1, decoder.block[0].conv_t1
    num_bands = min(hop, min(down.out_channels, up.in_channels) // num_channels)
    num_coefficients = num_bands * num_channels
    # [num_coefficients, C · 2 · hop], each channel by itself
    transform = torch.kron(torch.eye(num_channels), mdct(num_bands, hop))
    coefficients, channels = torch.arange(num_coefficients), torch.arange(len(offsets))
    block = hop // rates[-1]
    for tap in range(2 * rates[-1]):
        part = transform[:, sides * 2 * hop + tap * block + offsets]
        wiring.connect(down, coefficients, channels, part, tap)
        wiring.connect(up, channels, coefficients, part.T, tap)
    wiring.apply()

    seen = _before_last(vae, audio)[:, :num_coefficients].transpose(1, 2).flatten(0, 1)  # [B · T, bands]
    values, vectors = torch.linalg.eigh(seen.T @ seen / len(seen))
    kept = min(latent_dim, num_coefficients)
    components, spread = vectors[:, -kept:].flip(1).T, values[-kept:].flip(0).clamp(min=1e-12).sqrt()
    last = Wiring()
    latents = torch.arange(kept)
    last.connect(encoder.conv2, latents, coefficients, components / spread[:, None], tap=1)
    last.connect(decoder.conv1, coefficients, latents, (components * spread[:, None]).T, tap=3)
    last.apply()
    encoder.conv2.bias[latent_dim:] = math.log(math.expm1(_SCALE))


def _before_last(vae: OobleckVae, audio: Tensor) -> Tensor:
    """What the encoder's last convolution sees, `[B, channels, T]`."""
    hidden = vae.oobleck.encoder.conv1(audio)
    for block in vae.oobleck.encoder.block:
        hidden = block(hidden)
    seen: Tensor = vae.oobleck.encoder.snake1(hidden)
    return seen
