"""Codecs of single samples: 256 classes a sample, on a μ-law or a linear scale, without any weights.

They make sample-level models (WaveNet, SampleRNN) language models over a codec with one codebook and a hop
of one sample.

Shapes: B batch, N samples, which are the frames too.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from ...core.errors import UserError
from ..codec import Chunking, Codec, CodecInfo, library_versions

NUM_CLASSES = 256
MU = NUM_CLASSES - 1


def compress(samples: Tensor) -> Tensor:
    """f(x) = sign(x) · ln(1 + μ|x|) / ln(1 + μ), the companding of WaveNet (arXiv:1609.03499, sec. 2.2).

    It is the continuous law; the eight-bit format of ITU-T G.711 approximates it by straight segments and
    orders its bytes differently.
    """
    return torch.sign(samples) * torch.log1p(MU * samples.abs()) / math.log1p(MU)


def expand(companded: Tensor) -> Tensor:
    """The inverse of `compress`: x = sign(y) · ((1 + μ)^|y| - 1) / μ."""
    return torch.sign(companded) * torch.expm1(companded.abs() * math.log1p(MU)) / MU


class _SampleCodec(Codec):
    """Classes between sorted edges: a sample's class is the number of edges at or below it.

    Comparing with a table, rather than evaluating a logarithm, gives the same class on every device.
    """

    edges: Tensor  # [255]
    centres: Tensor  # [256]

    def __init__(self, id: str, sample_rate: int, edges: Tensor, centres: Tensor) -> None:
        super().__init__(
            CodecInfo(
                id=id,
                revision=None,
                sample_rate=sample_rate,
                channels=1,
                hop_length=1,
                frame_rate=float(sample_rate),
                num_codebooks=1,
                codebook_size=NUM_CLASSES,
                latent_dim=1,
                versions=library_versions(),
            )
        )
        self.register_buffer("edges", edges.float())
        self.register_buffer("centres", centres.float())

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.edges.device

    @property
    def chunking(self) -> Chunking:
        """Each sample is coded alone."""
        return Chunking(exact=True, encoder_context=0, decoder_context=0)

    def _encode(self, audio: Tensor) -> Tensor:
        return torch.bucketize(audio, self.edges, right=True)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.centres[codes]


class MuLaw(_SampleCodec):
    """`mulaw:RATE`: class c stands for the companded value 2c/255 - 1, and a sample takes the nearest one.

    Ties go up, so silence is class 128 and the faintest negative sample class 127; neither decodes to zero,
    but to ±8.6e-5 (±1/255 on the companded scale). Samples beyond ±1 take the outermost classes.
    """

    def __init__(self, sample_rate: int) -> None:
        classes = torch.arange(NUM_CLASSES, dtype=torch.float64)
        edges = expand(2 * (classes[:-1] + 0.5) / MU - 1)
        super().__init__(f"mulaw:{sample_rate}", sample_rate, edges, expand(2 * classes / MU - 1))

    def _encode_latents(self, audio: Tensor) -> Tensor:
        return compress(audio.clamp(-1.0, 1.0))

    def _decode_latents(self, latents: Tensor) -> Tensor:
        return expand(latents.clamp(-1.0, 1.0))


class Linear(_SampleCodec):
    """`linear:RATE`: 256 classes of equal width 1/128, decoded to their middle.

    Silence is class 128, which begins at zero and decodes to 1/256; the faintest negative sample is class
    127, -1/256. Samples beyond ±1 take the outermost classes.
    """

    def __init__(self, sample_rate: int) -> None:
        classes = torch.arange(NUM_CLASSES, dtype=torch.float64)
        edges = classes[1:] / (NUM_CLASSES / 2) - 1
        super().__init__(f"linear:{sample_rate}", sample_rate, edges, (classes + 0.5) / (NUM_CLASSES / 2) - 1)

    def _encode_latents(self, audio: Tensor) -> Tensor:
        return audio.clamp(-1.0, 1.0)

    def _decode_latents(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1.0, 1.0)


_FAMILIES = {"mulaw": MuLaw, "linear": Linear}


def is_waveform_id(id: str) -> bool:
    """Whether the id is `mulaw:…` or `linear:…`, whatever comes after the colon."""
    return id.partition(":")[0] in _FAMILIES and ":" in id


def load_waveform(id: str) -> Codec:
    """The codec `mulaw:RATE` or `linear:RATE`; raises `UserError` if RATE is no positive number of Hz."""
    family, _, rate = id.partition(":")
    if not re.fullmatch(r"[1-9][0-9]*", rate):
        raise UserError(f"codec {id}: a sample rate in Hz must follow the colon, as in {family}:16000")
    return _FAMILIES[family](int(rate))
