"""A DAC that begins as a lapped transform instead of as noise.

A randomly initialised DAC stays near silence for hundreds of steps before it follows the waveform. But its
convolutions can hold a transform that is known to invert: all strides but the last only deal samples out to
channels, and the last one, whose kernel spans two hops, is a modified discrete cosine transform (Princen,
Johnson and Bradley, "Subband/transform coding using filter bank designs based on time domain aliasing
cancellation", ICASSP 1987). The decoder is its inverse. Snake activations with a small α and residual units
with a small gain leave that almost untouched, and the channels that the transform does not use start at
random, so there is everything left to learn, from a start at which the autoencoder already works.

Shapes: B batch, N samples, D latent width, T frames.
"""

from __future__ import annotations

import math

import dac
import torch
from dac.model.dac import ResidualUnit
from dac.nn.layers import Snake1d
from torch import Tensor, nn

# Snake is x + sin²(αx)/α, which for small α is x.
_ALPHA = 0.05
_RESIDUAL_GAIN = 0.05

# The constant of a lookup, in standard deviations of what is looked up.
_LEVEL = 3.0

_NEGLIGIBLE = 1e-3


def mdct(num_coefficients: int, hop: int) -> Tensor:
    """The first rows of the orthonormal MDCT with a sine window, `[num_coefficients, 2 · hop]`.

    The transposed matrix, overlapped and added at every hop, is its inverse if there are `hop` rows.
    """
    n = torch.arange(2 * hop, dtype=torch.float64) + 0.5
    k = torch.arange(num_coefficients, dtype=torch.float64) + 0.5
    window = torch.sin(math.pi * n / (2 * hop))
    basis = window * torch.cos(math.pi / hop * k[:, None] * (n + hop / 2))
    return (math.sqrt(2 / hop) * basis).float()


@torch.no_grad()
def start_as_lapped_transform(codec: dac.DAC, audio: Tensor) -> None:
    """Set the weights of a fresh `codec`, whose weight norm is a parametrization.

    `audio` `[B, 1, N]` is an example by which latents are scaled to unit variance: codebooks start with it.
    Coefficients beyond the latent width, which are the highest frequencies, are left out. Raises
    `ValueError` if the codec is too narrow to deal its samples out to channels.
    """
    for module in codec.modules():
        if isinstance(module, Snake1d):
            nn.init.constant_(module.alpha, _ALPHA)
        elif isinstance(module, ResidualUnit):
            module.block[-1].weight *= _RESIDUAL_GAIN
    encoder, decoder = codec.encoder.block, codec.decoder.model
    rates = list(codec.encoder_rates)
    hop = math.prod(rates)

    wiring = Wiring()
    wiring.connect(encoder[0], torch.tensor([0]), torch.tensor([0]), torch.ones(1, 1), tap=3)
    wiring.connect(decoder[-2], torch.tensor([0]), torch.tensor([0]), torch.ones(1, 1), tap=3)
    # offsets[c]: which sample of a block of samples channel c holds.
    offsets = torch.zeros(1, dtype=torch.int64)
    for i, rate in enumerate(rates[:-1]):
        block = math.prod(rates[:i])
        channels = torch.arange(len(offsets))
        down, up = encoder[1 + i].block[-1], decoder[len(rates) - i].block[1]
        if len(offsets) * rate > min(down.out_channels, up.in_channels):
            raise ValueError(
                f"{down.out_channels} channels cannot hold the {len(offsets) * rate} samples of a frame"
                f" at stride {i + 1}: widen the codec, or put its larger strides last"
            )
        pad = math.ceil(rate / 2)
        identity = torch.eye(len(offsets))
        for r in range(rate):
            dealt = channels + r * len(offsets)
            wiring.connect(down, dealt, channels, identity, tap=pad + r)
            wiring.connect(up, channels, dealt, identity, tap=pad + r)
        offsets = torch.cat([offsets + r * block for r in range(rate)])

    down, up = encoder[len(rates)].block[-1], decoder[1].block[1]
    num_coefficients = min(hop, down.out_channels, up.in_channels, codec.latent_dim)
    transform = mdct(num_coefficients, hop)
    latents = torch.arange(num_coefficients)
    channels = torch.arange(len(offsets))
    block = hop // rates[-1]
    for tap in range(2 * rates[-1]):
        part = transform[:, tap * block + offsets]  # [num_coefficients, channels]
        wiring.connect(down, latents, channels, part, tap)
        wiring.connect(up, channels, latents, part.T, tap)
    wiring.connect(encoder[-1], latents, latents, torch.eye(num_coefficients), tap=1)
    wiring.connect(decoder[0], latents, latents, torch.eye(num_coefficients), tap=3)

    wiring.apply()
    scale = codec.encoder(audio).std()
    encoder[-1].weight /= scale
    decoder[0].weight *= scale
    _start_quantizer(codec, codec.encoder(audio))


def _start_quantizer(codec: dac.DAC, latents: Tensor) -> None:
    """Share the latent dimensions out to the codebooks, and fill these with examples from `[B, D, T]`.

    Every codebook gets one of the strongest dimensions, one of the next strongest, and so on, which evens out
    what each has to describe. Codes are looked up by direction alone: the last dimension of each lookup is a
    constant, so that loud and soft differ in direction too.
    """
    frames = latents.transpose(1, 2).flatten(0, 1)  # [B · T, D]
    spread = frames.std(0)
    order = spread.argsort(descending=True)
    quantizers = codec.quantizer.quantizers
    for i, quantizer in enumerate(quantizers):
        width = quantizer.codebook_dim
        mine = order[i :: len(quantizers)][: width - 1]
        scale = spread[mine].square().mean().sqrt()
        taken = torch.arange(len(mine))
        # Weight norm needs every row to have a direction: the others get one of no consequence.
        down = _NEGLIGIBLE * torch.randn_like(quantizer.in_proj.weight)
        down[taken, mine, 0] = 1 / scale
        up = _NEGLIGIBLE * torch.randn_like(quantizer.out_proj.weight)
        up[mine, taken, 0] = scale
        quantizer.in_proj.weight, quantizer.out_proj.weight = down, up
        quantizer.in_proj.bias.zero_()
        quantizer.in_proj.bias[-1] = _LEVEL
        quantizer.out_proj.bias.zero_()
        seen = quantizer.in_proj(frames[:, :, None])[:, :, 0]
        examples = torch.randint(len(seen), (quantizer.codebook_size,))
        quantizer.codebook.weight.copy_(seen[examples])


class Wiring:
    """New weights of convolutions, set all at once: weight norm cannot hold a channel that is still empty."""

    def __init__(self) -> None:
        self._weights: dict[nn.Conv1d | nn.ConvTranspose1d, Tensor] = {}
        self._emptied: dict[nn.Conv1d | nn.ConvTranspose1d, Tensor] = {}

    def connect(
        self,
        conv: nn.Conv1d | nn.ConvTranspose1d,
        outputs: Tensor,
        inputs: Tensor,
        weights: Tensor,
        tap: int,
    ) -> None:
        """Let `weights` `[outputs, inputs]` be what channels `outputs` receive at one tap.

        The first time that an output is named, it loses its random connections.
        """
        is_new = conv not in self._weights
        weight = self._weights.setdefault(conv, conv.weight.detach().clone())
        view = weight.transpose(0, 1) if isinstance(conv, nn.ConvTranspose1d) else weight  # [out, in, taps]
        if is_new:
            self._emptied[conv] = torch.zeros(view.shape[0], dtype=torch.bool)
        emptied = self._emptied[conv]
        fresh = outputs[~emptied[outputs]]
        view[fresh] = 0
        emptied[fresh] = True
        view[outputs[:, None], inputs[None], tap] = weights

    def apply(self) -> None:
        """Give the convolutions their weights, and no bias."""
        for conv, weight in self._weights.items():
            conv.weight = weight
            if conv.bias is not None:
                conv.bias.zero_()
