"""Embeddings: what a network makes of a clip, frame by frame.

Shapes: B clips in a batch, C channels, N samples, D width, T frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ..core.audio import resample, to_channels
from ..core.device import best_device
from ..core.errors import UserError
from ..tokenize.codec import load_codec

BATCH_SAMPLES = 1 << 19
"""Samples that the network sees at once; the longer the clips, the smaller the batches."""


@dataclass(frozen=True)
class Embedding:
    """A network that embeds audio."""

    name: str
    sample_rate: int
    """Rate in Hz of the mono audio that it takes."""
    width: int
    embed: Callable[[torch.Tensor], torch.Tensor]  # [B, 1, N] → [B, D, T]


@cache
def _pocket() -> Embedding:
    """The output of the pocket codec's encoder before quantisation, 50 frames/s.

    It was trained to reconstruct sound, not to hear like people, and no claim is made that this distance
    follows listeners' judgement. A model over this same codec's tokens can produce nothing but what the
    codec's decoder can, which is why the scores have a row for real audio sent through the codec: it shows
    how much of a distance is the codec's. What it has: it is there without a download, deterministic, and
    sensitive to pitch, timbre, noise and silence.
    """
    codec = load_codec("pocket", device=best_device())
    return Embedding(
        "pocket",
        codec.sample_rate,
        codec.latent_dim,
        lambda audio: codec.encode_latents(audio.to(codec.device)),
    )


EMBEDDINGS: dict[str, Callable[[], Embedding]] = {"pocket": _pocket}


def load_embedding(name: str) -> Embedding:
    """The embedding called `name`; raises `UserError` for a name that there is not."""
    if name not in EMBEDDINGS:
        raise UserError(f"there is no embedding '{name}'; there is: {', '.join(EMBEDDINGS)}")
    return EMBEDDINGS[name]()


def embed_clips(name: str, clips: Sequence[np.ndarray], sample_rate: int) -> list[np.ndarray]:
    """Embed `clips`, each [C, N] at `sample_rate` Hz; returns the frames [T, D] float32 of each.

    Channels are averaged and the audio is resampled to the network's rate with soxr's HQ. Only clips of equal
    length share a batch, so that no frame of a short clip is an embedding of padding.
    """
    embedding = load_embedding(name)
    mono = [resample(to_channels(clip, 1), sample_rate, embedding.sample_rate) for clip in clips]
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
                latents = embedding.embed(audio).transpose(1, 2)
            frames.update(zip(batch, latents.cpu().numpy(), strict=True))
    return [frames[i] for i in range(len(mono))]
