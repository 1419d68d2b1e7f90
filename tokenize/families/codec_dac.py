"""Descript Audio Codec (arXiv:2306.06546) in its `transformers` port, and the pocket codec, which is one.

Shapes: B batch, N samples, K codebooks, T frames, D latent width.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import dac
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, remove_weight_norm
from transformers import DacConfig, DacModel

from ...core import schema
from ...core.errors import UserError
from ..codec import Chunking, Codec, CodecInfo, library_versions, load_strictly
from ..receptive_field import conv_context

Network = TypeVar("Network", bound=nn.Module)

_NO_DIRECTION = 1e-12


class HubDac(Codec):
    """`transformers.DacModel` behind the codec interface."""

    def __init__(self, info: CodecInfo, model: DacModel) -> None:
        super().__init__(info)
        self.model = model

    @classmethod
    def load(cls, id: str, source: str, revision: str | None, num_codebooks: int | None) -> Self:
        """Load from the Hub, its cache, or a folder."""
        model = load_strictly(DacModel, id, source, revision)
        config = model.config
        kept = config.n_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= kept <= config.n_codebooks:
            raise UserError(f"codec {id} has {config.n_codebooks} codebooks: num_codebooks cannot be {kept}")
        hop_length = math.prod(config.downsampling_ratios)
        info = CodecInfo(
            id=id,
            revision=revision,
            sample_rate=config.sampling_rate,
            channels=1,
            hop_length=hop_length,
            frame_rate=config.sampling_rate / hop_length,
            num_codebooks=kept,
            codebook_size=config.codebook_size,
            latent_dim=config.hidden_size,
            versions=library_versions(),
        )
        return cls(info, model)

    @functools.cached_property
    def chunking(self) -> Chunking:
        """Convolutions alone: exact, with the context that they have (8 and 10 frames at DAC's own sizes)."""
        hop_length = self.info.hop_length
        return Chunking(
            exact=True,
            encoder_context=conv_context(self.model.encoder, hop_length),
            decoder_context=conv_context(self.model.decoder, hop_length),
        )

    @property
    def projected_latent_dim(self) -> int:
        """Width of the projected latents: `codebook_dim` numbers for each kept codebook."""
        width: int = self.info.num_codebooks * self.model.config.codebook_dim
        return width

    @torch.no_grad()
    def encode_projected_latents(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to what each kept codebook is asked to quantise, `[B, K * codebook_dim, T]`.

        Codebook after codebook: its in-projection of the residual that the codebooks before it have left.
        """
        latents = self._encode_latents(self._prepare(audio))
        projected: Tensor = self.model.quantizer(latents, self.info.num_codebooks)[2]
        return projected

    @torch.no_grad()
    def decode_projected_latents(self, latents: Tensor, num_samples: int | None = None) -> Tensor:
        """Projected latents `[B, K * codebook_dim, T]` to audio `[B, 1, num_samples]`, without quantisation.

        The out-projections of the kept codebooks are summed. Raises `ValueError` for another width.
        """
        if latents.ndim != 3 or latents.shape[1] != self.projected_latent_dim:
            raise ValueError(
                f"latents [B, {self.projected_latent_dim}, T] expected, not {list(latents.shape)}"
            )
        parts = latents.chunk(self.info.num_codebooks, dim=1)
        quantizers = self.model.quantizer.quantizers[: len(parts)]
        summed = sum(quantizer.out_proj(part) for quantizer, part in zip(quantizers, parts, strict=True))
        return self._fit(self.model.decoder(summed), latents.shape[-1], num_samples)

    def _encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self.model.quantizer(self.model.encoder(audio), self.info.num_codebooks)[1]
        return codes

    def _decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(self.model.quantizer.from_codes(codes)[0])
        return audio

    def _encode_latents(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.model.encoder(audio)
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(latents)
        return audio


def build_original(config: schema.DacModel) -> dac.DAC:
    """A freshly initialised DAC of the original package, which is the one that learns.

    `transformers.DacModel` has no weight norm and starts from weights of std 0.02: it stays near silence.
    """
    return with_parametrized_weight_norm(
        lambda: dac.DAC(
            encoder_dim=config.encoder_dim,
            encoder_rates=list(config.encoder_rates),
            decoder_dim=config.decoder_dim,
            decoder_rates=list(reversed(config.encoder_rates)),
            n_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            codebook_dim=config.codebook_dim,
            sample_rate=config.sample_rate_hz,
        )
    )


def with_parametrized_weight_norm(build: Callable[[], Network]) -> Network:
    """What `build` makes, with parametrizations, which can be copied, for the package's old weight norm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm. is deprecated", category=FutureWarning)
        network = build()
    for module in network.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)
            parametrizations.weight_norm(module)
    return network


def to_hub(original: dac.DAC) -> DacModel:
    """The same codec as a `transformers.DacModel`, with weight norm folded into the weights."""
    on_cpu = copy.deepcopy(original).cpu().eval()
    quantizer = on_cpu.quantizer.quantizers[0]
    hub = DacModel(
        DacConfig(
            encoder_hidden_size=on_cpu.encoder_dim,
            downsampling_ratios=list(on_cpu.encoder_rates),
            decoder_hidden_size=on_cpu.decoder_dim,
            n_codebooks=on_cpu.n_codebooks,
            codebook_size=quantizer.codebook_size,
            codebook_dim=quantizer.codebook_dim,
            sampling_rate=on_cpu.sample_rate,
        )
    ).eval()
    with torch.no_grad():
        for source, target in _same_modules(on_cpu, hub):
            # `weight` of a module with weight norm is the product. Removing the norm instead would take it
            # from the original too, whose copies share its class.
            target.load_state_dict({name: getattr(source, name) for name, _ in target.named_parameters()})
    return hub


def from_hub(hub: DacModel) -> dac.DAC:
    """The same codec as a `dac.DAC` to train, with parametrized weight norm: the inverse of `to_hub`."""
    config = hub.config
    original = build_original(
        schema.DacModel(
            kind="dac",
            sample_rate_hz=config.sampling_rate,
            encoder_dim=config.encoder_hidden_size,
            encoder_rates=list(config.downsampling_ratios),
            decoder_dim=config.decoder_hidden_size,
            num_codebooks=config.n_codebooks,
            codebook_size=config.codebook_size,
            codebook_dim=config.codebook_dim,
        )
    )
    with torch.no_grad():
        for source, target in _same_modules(original, hub):
            for name, value in target.named_parameters():
                if parametrize.is_parametrized(source, name):
                    # Weight norm needs a direction even of a channel that is nothing.
                    is_nothing = value.abs().amax((1, 2), keepdim=True) == 0
                    setattr(source, name, torch.where(is_nothing, _NO_DIRECTION, value).float())
                else:
                    getattr(source, name).copy_(value)
    return original


def save_dac(original: dac.DAC, folder: Path, store: str) -> None:
    """Write `config.json` and `model.safetensors` as `DacModel.from_pretrained` reads them."""
    to_hub(original).to(getattr(torch, store)).save_pretrained(folder)


def _same_modules(original: dac.DAC, hub: DacModel) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs of modules with parameters of the same name and meaning, in the two layouts."""

    def residual(source: Any, target: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
        yield from zip(source.block, [target.snake1, target.conv1, target.snake2, target.conv2], strict=True)

    first, *blocks, snake, last = original.encoder.block
    yield from [(first, hub.encoder.conv1), (snake, hub.encoder.snake1), (last, hub.encoder.conv2)]
    for source, target in zip(blocks, hub.encoder.block, strict=True):
        *residuals, snake, strided = source.block
        for unit, name in zip(residuals, ("res_unit1", "res_unit2", "res_unit3"), strict=True):
            yield from residual(unit, getattr(target, name))
        yield from [(snake, target.snake1), (strided, target.conv1)]

    first, *blocks, snake, last, _tanh = original.decoder.model
    yield from [(first, hub.decoder.conv1), (snake, hub.decoder.snake1), (last, hub.decoder.conv2)]
    for source, target in zip(blocks, hub.decoder.block, strict=True):
        snake, strided, *residuals = source.block
        yield from [(snake, target.snake1), (strided, target.conv_t1)]
        for unit, name in zip(residuals, ("res_unit1", "res_unit2", "res_unit3"), strict=True):
            yield from residual(unit, getattr(target, name))

    for source, target in zip(original.quantizer.quantizers, hub.quantizer.quantizers, strict=True):
        for name in ("in_proj", "out_proj", "codebook"):
            yield getattr(source, name), getattr(target, name)
