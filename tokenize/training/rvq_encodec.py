"""An EnCodec to train: the `transformers` module, whose quantiser is made for inference only.

Its codebooks have no gradient: an entry is the moving average of what it stood for, with additive smoothing
of the counts (arXiv:2210.13438, sec. 3.2; arXiv:1711.00937, appendix A.1). Each stage's commitment term has
its own gradient, because what the stages before took away is no function of the encoder's output here.

Shapes: B batch, N samples, K codebooks, V codebook size, d width of an entry, T frames.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import EncodecConfig, EncodecModel

from ...core import schema
from ...core.device import best_device
from ...core.errors import UserError
from ...core.optimizer import adamw
from ..codec import load_codec
from ..codec_hub import find_folder
from ..families.codec_encodec import HubEncodec, known_bandwidths
from .kmeans import start_codebooks
from .rvq import CLIPS_AT_ONCE, RvqCodec, RvqOutput

_SMOOTHING = 1e-5


class RvqEncodec(RvqCodec):
    """`transformers.EncodecModel` for one channel, without segments."""

    def __init__(self, network: EncodecModel, config: schema.EncodecModel) -> None:
        quantizer = network.quantizer
        super().__init__(quantizer.num_quantizers, quantizer.codebook_size, codebook_weight=0.0)
        self.network = network
        self._decay = config.codebook_decay
        bandwidths = network.config.target_bandwidths
        self._counts = [quantizer.get_num_quantizers_for_bandwidth(kbps) for kbps in bandwidths]
        self.largest_bandwidth_kbps = float(bandwidths[-1])

    def forward(self, audio: Tensor, num_used: Tensor | None = None) -> RvqOutput:
        """See `RvqCodec`; the commitment term is the mean over the codebooks that a clip goes through."""
        latents = self.network.encoder(audio)
        # In mixed precision too: nearest entries of neighbours would be mixed up.
        with torch.autocast(audio.device.type, enabled=False):
            latents = latents.to(self.use.dtype)
            residual, quantized = latents, torch.zeros_like(latents)
            commitment, codes, asked, share = latents.new_zeros(len(audio)), [], [], []
            for number, layer in enumerate(self.network.quantizer.layers):
                its_codes = layer.encode(residual.detach())
                entry = layer.decode(its_codes)
                used = (number < num_used if num_used is not None else torch.ones_like(commitment)).to(entry)
                share.append(used)
                # arXiv:2210.13438, eq. 3
                commitment = commitment + used * mse_loss(residual, entry, reduction="none").mean((1, 2))
                quantized = quantized + entry * used[:, None, None]
                codes.append(its_codes)
                asked.append(residual)
                residual = residual - entry
            straight_through = latents + (quantized - latents).detach()
        decoded = self.network.decoder(straight_through)[..., : audio.shape[-1]]
        return RvqOutput(
            audio=decoded,
            codes=torch.stack(codes, 1),
            asked=torch.stack(asked, 1),
            codebook=latents.new_zeros(()),
            commitment=(commitment / torch.stack(share).sum(0)).mean(),
        )

    def draw_used(self, rng: np.random.Generator, batch_size: int) -> np.ndarray:
        """As many as one of the bandwidths takes (arXiv:2210.13438, sec. 3.2)."""
        return rng.choice(self._counts, batch_size).astype(np.int64)

    @torch.no_grad()
    def replace(self, codebook: int, entries: Tensor, values: Tensor) -> None:
        """See `RvqCodec`. Their averages begin anew, as if each had been used as often as an even use is."""
        book = self.network.quantizer.layers[codebook].codebook
        even = book.cluster_size.mean()
        book.embed[entries] = values
        book.cluster_size[entries] = even
        book.embed_avg[entries] = values * even

    @torch.no_grad()
    def find_codebooks(self, examples: Tensor, least_use: float = 0.0) -> None:
        """See `RvqCodec`: one residual after another."""
        network = self.network.to(best_device())
        parts = [part.to(network.device) for part in torch.split(examples, CLIPS_AT_ONCE)]
        latents = torch.cat([network.encoder(part) for part in parts])
        residual = latents.transpose(1, 2).flatten(0, 1)  # [F, d]
        for layer in network.quantizer.layers:
            book = layer.codebook
            book.embed.copy_(start_codebooks(residual, self.codebook_size, least_use=least_use))
            book.embed_avg.copy_(book.embed)
            book.cluster_size.fill_(1.0)
            residual = residual - book.decode(book.quantize(residual))
        network.cpu()

    @torch.no_grad()
    def follow(self, counts: Tensor, codes: Tensor, asked: Tensor) -> None:
        """See `RvqCodec`."""
        sums = self.sums_of(codes, asked)
        for number, layer in enumerate(self.network.quantizer.layers):
            book = layer.codebook
            book.cluster_size.lerp_(counts[number].to(book.cluster_size), 1 - self._decay)
            book.embed_avg.lerp_(sums[number].to(book.embed_avg), 1 - self._decay)
            total = book.cluster_size.sum()
            smooth = total / (total + self.codebook_size * _SMOOTHING)
            book.embed.copy_(book.embed_avg / ((book.cluster_size + _SMOOTHING) * smooth)[:, None])

    def optimizer(self, train: schema.Train) -> torch.optim.Optimizer:
        """AdamW."""
        return adamw(self, train)

    def save(self, folder: Path, store: str) -> None:
        """As `transformers.EncodecModel.from_pretrained` reads it."""
        copy.deepcopy(self.network).to(getattr(torch, store)).save_pretrained(folder)


def build_encodec(config: schema.EncodecModel, examples: Tensor) -> RvqEncodec:
    """The codec that training begins from; `examples` `[B, 1, N]` are what a fresh one's codebooks start as.

    Raises `UserError` if the source is none that can be trained on, or has another rate.
    """
    if config.source is not None:
        return RvqEncodec(_from_source(config, config.source), config)
    network = EncodecModel(
        EncodecConfig(
            sampling_rate=config.sample_rate_hz,
            num_filters=config.num_filters,
            upsampling_ratios=list(config.upsampling_ratios),
            num_residual_layers=config.num_residual_layers,
            num_lstm_layers=config.num_lstm_layers,
            hidden_size=config.hidden_size,
            use_causal_conv=config.causal,
            codebook_size=config.codebook_size,
            target_bandwidths=list(config.bandwidths_kbps),
        )
    )
    codec = RvqEncodec(network, config)
    codec.find_codebooks(examples)
    return codec


def _from_source(config: schema.EncodecModel, source: str) -> EncodecModel:
    folder, _ = find_folder(source, config.source_revision)
    bandwidths = known_bandwidths(folder)
    found = load_codec(
        source, revision=config.source_revision, bandwidth_kbps=bandwidths[-1] if bandwidths else None
    )
    if not isinstance(found, HubEncodec) or found.channels != 1:
        raise UserError(
            f"model.source {source} is not an EnCodec of one channel without segments in the hub's layout:"
            " name one, such as facebook/encodec_24khz"
        )
    if found.sample_rate != config.sample_rate_hz:
        raise UserError(
            f"model.source {source} has {found.sample_rate} Hz: set model.sample_rate_hz to that,"
            f" not to {config.sample_rate_hz}"
        )
    return found.model.requires_grad_(True)
