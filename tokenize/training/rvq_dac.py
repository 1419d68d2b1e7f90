"""A DAC to train: the original package's module, from weights of a hub's or from a fresh start.

Shapes: B batch, N samples, K codebooks, d width of an entry, T frames.
"""

from __future__ import annotations

from pathlib import Path

import dac
import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.optimizer import adamw
from ...core.schema import DacModel, Train
from ..codec import load_codec
from ..families.codec_dac import HubDac, build_original, from_hub, save_dac
from .kmeans import start_codebooks
from .lapped_start import start_as_lapped_transform
from .rvq import RvqCodec, RvqOutput


class RvqDac(RvqCodec):
    """`dac.DAC` (arXiv:2306.06546)."""

    def __init__(self, network: dac.DAC, config: DacModel) -> None:
        super().__init__(network.n_codebooks, network.codebook_size, config.codebook_weight)
        self.network = network
        self.codebook_lr_scale = config.codebook_lr_scale
        self._quantizer_dropout = config.quantizer_dropout

    def forward(self, audio: Tensor, num_used: Tensor | None = None) -> RvqOutput:
        """See `RvqCodec`. The package's own pass would draw `num_used` itself, in each process another."""
        network = self.network
        residual = network.encoder(network.preprocess(audio, network.sample_rate))
        quantized, codebook, commitment = torch.zeros_like(residual), [], []
        codes, asked = [], []
        for number, quantizer in enumerate(network.quantizer.quantizers):
            entry, its_commitment, its_codebook, its_codes, its_asked = quantizer(residual)
            used = (number < num_used if num_used is not None else torch.ones_like(its_codebook)).to(entry)
            quantized = quantized + entry * used[:, None, None]
            residual = residual - entry
            codebook.append((its_codebook * used).mean())
            commitment.append((its_commitment * used).mean())
            codes.append(its_codes)
            asked.append(its_asked)
        return RvqOutput(
            audio=network.decoder(quantized)[..., : audio.shape[-1]],
            codes=torch.stack(codes, 1),
            asked=torch.stack(asked, 1),
            codebook=torch.stack(codebook).sum(),
            commitment=torch.stack(commitment).sum(),
        )

    def draw_used(self, rng: np.random.Generator, batch_size: int) -> np.ndarray:
        """All, or an even draw for the share `quantizer_dropout` of clips (arXiv:2306.06546)."""
        drawn = rng.integers(1, self.num_codebooks + 1, batch_size)
        return np.where(rng.random(batch_size) < self._quantizer_dropout, drawn, self.num_codebooks)

    @torch.no_grad()
    def replace(self, codebook: int, entries: Tensor, values: Tensor) -> None:
        """See `RvqCodec`; the lookup goes by direction, and what the encoder made has its own length too."""
        self.network.quantizer.quantizers[codebook].codebook.weight[entries] = values

    def optimizer(self, train: Train) -> torch.optim.Optimizer:
        """AdamW, with faster codebooks."""
        optimizer = adamw(self, train)
        codebooks = [quantizer.codebook.weight for quantizer in self.network.quantizer.quantizers]
        theirs = {id(p) for p in codebooks}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in theirs]
        optimizer.add_param_group(
            {"params": codebooks, "weight_decay": 0.0, "lr_scale": self.codebook_lr_scale}
        )
        return optimizer

    def save(self, folder: Path, store: str) -> None:
        """As `transformers.DacModel.from_pretrained` reads it."""
        save_dac(self.network, folder, store)


def build_dac(config: DacModel, examples: Tensor) -> RvqDac:
    """The codec that training begins from; `examples` `[B, 1, N]` are what a fresh one is scaled by.

    Raises `UserError` if the source is none or has another rate, or a fresh codec cannot start as asked.
    """
    if config.source is not None:
        return RvqDac(_from_source(config, config.source), config)
    codec = build_original(config)
    if config.start == "lapped":
        try:
            start_as_lapped_transform(codec, examples)
        except ValueError as error:
            raise UserError(f"model.encoder_rates: {error}") from error
    elif config.start == "kmeans":
        _start_by_kmeans(codec, examples)
    return RvqDac(codec, config)


def _from_source(config: DacModel, source: str) -> dac.DAC:
    found = load_codec(source, revision=config.source_revision)
    if not isinstance(found, HubDac):
        raise UserError(f"model.source {source} is not a DAC in the hub's layout: name one, such as 'pocket'")
    if found.sample_rate != config.sample_rate_hz:
        raise UserError(
            f"model.source {source} has {found.sample_rate} Hz: set model.sample_rate_hz to that,"
            f" not to {config.sample_rate_hz}"
        )
    return from_hub(found.model)


@torch.no_grad()
def _start_by_kmeans(codec: dac.DAC, examples: Tensor) -> None:
    """Codebooks that stand for what a random encoder makes of `[B, 1, N]`, one residual after another."""
    residual = codec.encoder(codec.preprocess(examples, codec.sample_rate))
    for quantizer in codec.quantizer.quantizers:
        asked = quantizer.in_proj(residual)  # [B, d, T]
        quantizer.codebook.weight.copy_(
            start_codebooks(asked.transpose(1, 2).flatten(0, 1), quantizer.codebook_size)
        )
        residual = residual - quantizer(residual)[0]
