"""Embeddings: what a network makes of a clip, frame by frame.

`load_embedding` is the way in; each family of networks is one file in `embeddings/`.

Shapes: B clips in a batch, C channels, N samples, T frames, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.audio import resample, to_channels
from ..core.device import best_device
from ..core.errors import UserError

BATCH_SAMPLES = 1 << 19
"""Samples that the network sees at once; the longer the clips, the smaller the batches."""


@dataclass(frozen=True)
class EmbeddingInfo:
    """What a distance in an embedding depends on; distances compare only where all of this is equal."""

    name: str
    """What `load_embedding` takes."""
    version: str
    """Commit on the Hub, start of the weights' SHA-256, or a number where there are no weights."""
    sample_rate: int
    """Rate in Hz of the mono audio that it takes."""
    width: int
    """Values in a frame, D."""
    frame_s: float
    """Seconds of audio that a frame depends on, at most."""
    hop_s: float
    """Seconds from one frame to the next."""
    preprocessing: str
    """What is done to the audio before the network, in a sentence."""
    source: str
    """Paper, and the address of the weights."""


class Embedding(ABC):
    """A network with frozen weights that embeds mono audio at `info.sample_rate`."""

    is_light = False
    """Whether, on a CPU, a clip is sooner embedded than read: batches are then not worth waiting for."""

    def __init__(self, info: EmbeddingInfo) -> None:
        self.info = info

    @abstractmethod
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` in -1…1 to frames `[B, T, D]` float32, T = `frames(N)`, on any device.

        A clip's frames do not depend on what else is in the batch.
        """

    @abstractmethod
    def frames(self, num_samples: int) -> int:
        """Frames of a clip of `num_samples`; 0 where it is shorter than the network can take."""


class TextEmbedding(Embedding):
    """An embedding that holds sentences in the same space, so that both can be compared by their cosine."""

    @abstractmethod
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Sentences to vectors `[B, D]` float32 of length 1."""

    @abstractmethod
    def embed_clip(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to one vector of length 1 a clip, `[B, D]` float32."""


def check_mono(audio: Tensor) -> None:
    """Raise `ValueError` for audio that is not `[B, 1, N]` with at least one sample."""
    if audio.ndim != 3 or audio.shape[1] != 1 or not audio.shape[2]:
        raise ValueError(f"audio [B, 1, N] expected, not {list(audio.shape)}")


# --- the registry


Builder = Callable[[str, Path | None, torch.device], Embedding]
"""Makes the embedding of a name; the path is that of weights which the user gives."""


def _log_mel(name: str, weights: Path | None, device: torch.device) -> Embedding:
    from .embeddings.log_mel import LogMel

    _refuse_weights(name, weights)
    return LogMel(device)


def _vggish(name: str, weights: Path | None, device: torch.device) -> Embedding:
    from .embeddings.vggish import load_vggish

    return load_vggish(name, weights, device)


def _clap(name: str, weights: Path | None, device: torch.device) -> Embedding:
    from .embeddings.clap import load_clap

    return load_clap(name, weights, device)


def _codec(name: str, weights: Path | None, device: torch.device) -> Embedding:
    from .embeddings.codec_latents import load_codec_latents

    return load_codec_latents(name, weights, device)


def _wav2vec(name: str, weights: Path | None, device: torch.device) -> Embedding:
    from .embeddings.wav2vec import load_wav2vec

    return load_wav2vec(name, weights, device)


def _refuse_weights(name: str, weights: Path | None) -> None:
    if weights is not None:
        raise UserError(f"embedding {name} has no weights to choose: leave out {weights}")


EMBEDDINGS: dict[str, Builder] = {
    "pocket": _codec,
    "logmel": _log_mel,
    "vggish": _vggish,
    "vggish-google": _vggish,
    "clap": _clap,
    "clap-music": _clap,
    "clap-general": _clap,
    "mert": _wav2vec,
    "encodec": _codec,
    "encodec-32khz": _codec,
    "encodec-48khz": _codec,
    "dac": _codec,
    "dac-24khz": _codec,
    "dac-16khz": _codec,
}
"""Embeddings that have a name of their own."""

FAMILIES: dict[str, Builder] = {"clap": _clap, "mert": _wav2vec, "w2v2": _wav2vec, "codec": _codec}
"""Embeddings named `family:ID`, where ID is a hub id or a folder in the hub's layout."""


def load_embedding(
    name: str, *, weights: Path | None = None, device: str | torch.device | None = None
) -> Embedding:
    """The embedding called `name`.

    Args:
        name: one of `EMBEDDINGS`; `clap:ID`, `mert:ID` or `w2v2:ID` with a hub id or a folder (the last two
            with a layer, if it is not to be the last: `w2v2:facebook/wav2vec2-base#6`); `codec:ID` with
            anything that `load_codec` takes (`codec:ID@6.0` where it has to be told a bandwidth in kbit/s).
        weights: for VGGish a file, else a folder in the hub's layout; where the embedding has its weights
            from, if not told.
        device: where the network goes; the accelerator, if there is one and it is not told.

    Raises `UserError` if there is no such embedding, or its weights are neither here nor can be downloaded.
    """
    builder = EMBEDDINGS.get(name)
    if builder is None:
        family, _, id = name.partition(":")
        if family not in FAMILIES or not id:
            kinds = ", ".join(f"{family}:ID" for family in FAMILIES)
            raise UserError(f"there is no embedding '{name}'; there is: {', '.join(EMBEDDINGS)}, {kinds}")
        builder = FAMILIES[family]
    return builder(name, weights, torch.device(device) if device is not None else best_device())


# --- clips


def embed_clips(embedding: Embedding, clips: Sequence[np.ndarray], sample_rate: int) -> list[np.ndarray]:
    """Embed `clips`, each [C, N] at `sample_rate` Hz; returns the frames [T, D] float32 of each.

    Channels are averaged and the audio is resampled to the network's rate with soxr's HQ. Only clips of equal
    length share a batch, so that no frame of a short clip is an embedding of padding. A clip that is too
    short for the network has no frames.
    """
    mono = [resample(to_channels(clip, 1), sample_rate, embedding.info.sample_rate) for clip in clips]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, samples in enumerate(mono):
        by_length[samples.shape[1]].append(index)
    frames: dict[int, np.ndarray] = {}
    for num_samples, indices in by_length.items():
        batch_size = max(1, BATCH_SAMPLES // num_samples)
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            audio = torch.from_numpy(np.stack([mono[i] for i in batch]))
            with torch.inference_mode():
                embedded = embedding.embed(audio)
            frames.update(zip(batch, embedded.cpu().numpy(), strict=True))
    return [frames[i] for i in range(len(mono))]
