"""A DAC to train: the original package's module, from weights of a hub's or from a fresh start.

Shapes: B batch, N samples, K codebooks, d width of an entry, T frames.
"""

from __future__ import annotations

from pathlib import Path

import dac
import numpy as np
import torch
from torch import Tensor

from ...core.device import best_device
from ...core.errors import UserError
from ...core.optimizer import adamw
from ...core.schema import DacModel, Train
from ..codec import load_codec
from ..families.codec_dac import HubDac, build_original, from_hub, save_dac
from .kmeans import start_codebooks
from .lapped_start import start_as_lapped_transform
from .rvq import CLIPS_AT_ONCE, RvqCodec, RvqOutput

# An entry that is used less often than this, as a multiple of an even use, stays where it is.
_UNUSED = 1e-6


class RvqDac(RvqCodec):
    """`dac.DAC` (arXiv:2306.06546), whose entries learn by gradient or, with a decay, are moving averages."""

    use_average: Tensor
    sum_average: Tensor

    def __init__(self, network: dac.DAC, config: DacModel) -> None:
        weight = config.codebook_weight if config.codebook_decay is None else 0.0
        super().__init__(network.n_codebooks, network.codebook_size, weight)
        self.network = network
        self._decay = config.codebook_decay
        if self._decay is not None:
            for quantizer in network.quantizer.quantizers:
                quantizer.codebook.requires_grad_(False)
            self.register_buffer("use_average", torch.ones_like(self.use))
            self.register_buffer("sum_average", torch.stack(self._entries()))
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
        self._entries()[codebook][entries] = values
        if self._decay is not None:
            self.use_average[codebook, entries] = 1.0
            self.sum_average[codebook, entries] = values.to(self.sum_average)

    @torch.no_grad()
    def follow(self, counts: Tensor, codes: Tensor, asked: Tensor) -> None:
        """See `RvqCodec`: arXiv:1711.00937, appendix A.1, without its smoothing."""
        if self._decay is None:
            return
        even = self.codebook_size / counts.sum(1, keepdim=True)
        sums = self.sums_of(codes, asked) * even[..., None]
        self.use_average.lerp_((counts * even).to(self.use_average), 1 - self._decay)
        self.sum_average.lerp_(sums.to(self.sum_average), 1 - self._decay)
        means = self.sum_average / self.use_average.clamp(min=_UNUSED)[..., None]
        is_met = (self.use_average > _UNUSED)[..., None]
        for number, entries in enumerate(self._entries()):
            entries.copy_(torch.where(is_met[number], means[number].to(entries), entries))

    def find_codebooks(self, examples: Tensor, least_use: float = 0.0) -> None:
        """See `RvqCodec`."""
        _start_by_kmeans(self.network, examples, least_use)
        if self._decay is not None:
            self.sum_average.copy_(torch.stack(self._entries()))

    def _entries(self) -> list[Tensor]:
        """The codebooks, each `[V, d]`."""
        return [quantizer.codebook.weight.detach() for quantizer in self.network.quantizer.quantizers]

    def optimizer(self, train: Train) -> torch.optim.Optimizer:
        """AdamW, with faster codebooks where they learn by gradient."""
        optimizer = adamw(self, train)
        if self._decay is not None:
            return optimizer
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
def _start_by_kmeans(codec: dac.DAC, examples: Tensor, least_use: float = 0.0) -> None:
    """Codebooks that stand for what the encoder makes of `[B, 1, N]`, one residual after another."""
    device = best_device()
    codec.to(device)
    parts = [part.to(device) for part in torch.split(examples, CLIPS_AT_ONCE)]
    residual = torch.cat([codec.encoder(codec.preprocess(part, codec.sample_rate)) for part in parts])
    for quantizer in codec.quantizer.quantizers:
        asked = quantizer.in_proj(residual)  # [B, d, T]
        quantizer.codebook.weight.copy_(
            start_codebooks(
                asked.transpose(1, 2).flatten(0, 1),
                quantizer.codebook_size,
                by_direction=True,
                least_use=least_use,
            )
        )
        residual = residual - quantizer(residual)[0]
    codec.cpu()
