"""How many codes of EnCodec an LSTM without a past changes, by the audio that it is given to warm up.

    python tests/benchmarks/lstm_warm_up.py

EnCodec 24 kHz in a narrow form, with random weights that keep the scale of what passes through, encodes a
made clip of two minutes whole, and stretches of it that begin a warm-up, and what the convolutions see,
before the frames that are compared. How long a trained LSTM remembers is not known here, so its forget gates
are set to remember up to several times: their time constants are spread evenly, as arXiv:1804.11188 proposes.
"as made" is PyTorch's own start, which forgets within a few frames. The figures are shares of differing codes
in the first second after the warm-up, over 8 codebooks of 1024.
"""

import math

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel
from transformers.models.encodec.modeling_encodec import EncodecLSTM

from tokkata.core.schema_corpora import SynthCorpus
from tokkata.tokenize.corpora.synth import Synth
from tokkata.tokenize.receptive_field import conv_context

RATE = 24000
HOP = 320
NUM_CODEBOOKS = 8
WARM_UPS_S = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
MEMORIES_S = (None, 0.5, 1.0, 4.0)


def made_clip(duration_s: float) -> Tensor:
    """Phrases and chords one after another, `[1, 1, N]`."""
    settings = SynthCorpus(
        kind="synth",
        num_clips=round(duration_s / 2),
        sample_rate_hz=RATE,
        forms=["phrase", "chord"],
        random_phase=True,
    )
    corpus = Synth(settings)
    clip = np.concatenate([corpus.audio(clip).samples for clip in corpus.clips()], axis=1)
    # A little noise, or the codebooks would be fitted to the rounding of digital silence.
    clip = clip + 1e-3 * np.random.default_rng(0).standard_normal(clip.shape)
    return torch.from_numpy(clip.astype(np.float32))[None]


def build_encoder(memory_s: float | None) -> nn.Module:
    """The encoder, whose LSTM remembers for up to `memory_s` seconds; None: as PyTorch makes it."""
    torch.manual_seed(0)
    encoder = EncodecModel(EncodecConfig(num_filters=8, hidden_size=64)).encoder.eval().requires_grad_(False)
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv1d):
            layer.weight = torch.randn_like(layer.weight) * math.sqrt(1.3 / layer.weight[0].numel())
            layer.bias.zero_()
        if isinstance(layer, nn.LSTM) and memory_s is not None:
            longest = memory_s * RATE / HOP  # frames
            for number in range(layer.num_layers):
                getattr(layer, f"bias_hh_l{number}").zero_()
                bias = getattr(layer, f"bias_ih_l{number}")  # input, forget, cell and output gates
                time_constants = 1 + torch.rand(layer.hidden_size) * (longest - 2)
                bias[layer.hidden_size : 2 * layer.hidden_size] = time_constants.log()
                bias[: layer.hidden_size] = -time_constants.log()
    return encoder


def fit_codebooks(latents: Tensor, rounds: int = 5) -> list[Tensor]:
    """Codebooks `[1024, D]` of residual vector quantisation by k-means on latents `[T, D]`."""
    codebooks, residual = [], latents.clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUM_CODEBOOKS):
        codebook = residual[torch.randperm(len(residual), generator=generator)[:1024]].clone()
        for _ in range(rounds):
            nearest = torch.cdist(residual, codebook).argmin(dim=1)
            counts = torch.bincount(nearest, minlength=1024)
            sums = torch.zeros_like(codebook).index_add_(0, nearest, residual)
            codebook = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), codebook)
        residual = residual - codebook[torch.cdist(residual, codebook).argmin(dim=1)]
        codebooks.append(codebook)
    return codebooks


def quantize(latents: Tensor, codebooks: list[Tensor]) -> Tensor:
    """Latents `[T, D]` to codes `[K, T]`."""
    codes = []
    for codebook in codebooks:
        nearest = torch.cdist(latents, codebook).argmin(dim=1)
        latents = latents - codebook[nearest]
        codes.append(nearest)
    return torch.stack(codes)


def encode(encoder: nn.Module, audio: Tensor) -> Tensor:
    """Latents `[T, D]`, in float64 so that the quantiser adds no rounding of its own."""
    latents: Tensor = encoder(audio)[0].T.double()
    return latents


def shares_changed(encoder: nn.Module, audio: Tensor) -> list[float]:
    """For each of `WARM_UPS_S`, the share of codes that are not those of the whole clip."""
    context = conv_context(encoder, HOP, without=(EncodecLSTM,))
    second = round(RATE / HOP)
    whole = encode(encoder, audio)
    codebooks = fit_codebooks(whole)
    codes = quantize(whole, codebooks)
    starts = range(6 * second, len(whole) - 2 * second, 5 * second // 2)
    shares = []
    for warm_up_s in WARM_UPS_S:
        before = context + math.ceil(warm_up_s * RATE / HOP)
        changed = 0.0
        for start in starts:
            stretch = audio[..., (start - before) * HOP : (start + second + context) * HOP]
            part = quantize(encode(encoder, stretch)[before : before + second], codebooks)
            changed += float((part != codes[:, start : start + second]).double().mean())
        shares.append(changed / len(starts))
    return shares


def main() -> None:
    """Print the table."""
    audio = made_clip(120.0)
    table = Table("LSTM remembers", *(f"warm-up {seconds:g} s" for seconds in WARM_UPS_S))
    for memory_s in MEMORIES_S:
        shares = shares_changed(build_encoder(memory_s), audio)
        name = "as made" if memory_s is None else f"up to {memory_s:g} s"
        table.add_row(name, *(f"{100 * share:.3f}%" for share in shares))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
