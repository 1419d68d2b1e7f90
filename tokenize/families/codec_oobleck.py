"""Oobleck, the autoencoder of Stable Audio Open (arXiv:2407.14358), in its `diffusers` port.

Shapes: B batch, C channels, N samples, T frames, D latent width.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import remove_weight_norm

from ...core.errors import UserError
from ..codec import Chunking, Codec, CodecInfo, library_versions, load_strictly
from ..receptive_field import conv_context

if TYPE_CHECKING:  # importing it takes a second, and only this family needs it
    from diffusers import AutoencoderOobleck


_WEIGHTS = "diffusion_pytorch_model.safetensors"  # the name that diffusers gives the file


@dataclass(frozen=True)
class Posterior:
    """What a variational encoder says of a clip; `mean + scale * noise` is a sample of it."""

    mean: Tensor  # [B, D, T]
    scale: Tensor  # [B, D, T], standard deviations


class HubOobleck(Codec):
    """`diffusers.AutoencoderOobleck` behind the codec interface: latents, but no codes.

    `encode_latents` gives the posterior's mean, so the same audio always gives the same latents.
    """

    def __init__(self, info: CodecInfo, model: AutoencoderOobleck) -> None:
        super().__init__(info)
        self.model = model

    @classmethod
    def load(cls, id: str, source: str, revision: str | None, subfolder: str | None) -> Self:
        """Load from the Hub, its cache, or a folder; `subfolder` is where the autoencoder lies in it."""
        from diffusers import AutoencoderOobleck

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*weight_norm. is deprecated", category=FutureWarning)
            model = load_strictly(AutoencoderOobleck, id, source, revision, subfolder, _WEIGHTS)
        fold_weight_norm(model)
        config = model.config
        hop_length = math.prod(config.downsampling_ratios)
        info = CodecInfo(
            id=id,
            revision=revision,
            subfolder=subfolder,
            sample_rate=config.sampling_rate,
            channels=config.audio_channels,
            hop_length=hop_length,
            frame_rate=config.sampling_rate / hop_length,
            num_codebooks=0,
            codebook_size=0,
            latent_dim=config.decoder_input_channels,
            versions=library_versions() | {"diffusers": importlib.metadata.version("diffusers")},
        )
        return cls(info, model)

    @functools.cached_property
    def chunking(self) -> Chunking:
        """Convolutions alone: exact with what they see."""
        hop_length = self.info.hop_length
        return Chunking(
            exact=True,
            encoder_context=conv_context(self.model.encoder, hop_length),
            decoder_context=conv_context(self.model.decoder, hop_length),
        )

    @torch.no_grad()
    def encode_posterior(self, audio: Tensor) -> Posterior:
        """Audio `[B, C, N]` to the mean and the standard deviation of each latent, `[B, D, T]` both."""
        return self._posterior(self._prepare(audio))

    def _posterior(self, audio: Tensor) -> Posterior:
        mean, raw_scale = self.model.encoder(audio).chunk(2, dim=1)
        # The floor under the standard deviation is the model's, from its training.
        return Posterior(mean, F.softplus(raw_scale) + 1e-4)

    def _encode(self, audio: Tensor) -> NoReturn:
        raise self._no_codes()

    def _decode(self, codes: Tensor) -> NoReturn:
        raise self._no_codes()

    def _check_codes(self, codes: Tensor) -> NoReturn:
        raise self._no_codes()

    def _no_codes(self) -> UserError:
        return UserError(
            f"codec {self.info.id} is a variational autoencoder and has no codes:"
            " set tokenize.store to latents, or choose a codec with codebooks"
        )

    def _encode_latents(self, audio: Tensor) -> Tensor:
        return self._posterior(audio).mean

    def _decode_latents(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(latents)
        return audio


def fold_weight_norm(model: nn.Module) -> None:
    """Replace each weight of a normalised layer by the product, in place; the output stays the same.

    The deprecated hook computes the product in every pass, and cannot be copied or compiled.
    """
    for module in model.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)
