"""The sets that are compared: systems, and the baselines that make their numbers readable.

Shapes: C channels, N samples, T frames, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..core.audio import AudioError, load_audio
from ..core.progress import track
from ..core.schema import Audio
from ..tokenize.codec import Codec
from .clip_notes import NOTHING, ClipNote
from .embed_folder import EmbeddedClip, EmbeddedFolder, Unusable
from .embedding import Embedding, embed_clips
from .folder_audio import PIECE_S

MAX_HELD_VALUES = 1 << 26
"""Embedding values of one set that are held at once, 256 MiB; of larger sets random clips are held."""
MAX_BASELINE_CLIPS = 100
"""Clips of the baselines that are made: noise and reconstructions."""
BASELINE_BATCH = 8
"""Made clips that are in memory at once."""

FLOOR, RECONSTRUCTED, NOISE = "real, other half", "reconstructed", "white noise"

Role = Literal["generated", "baseline"]


@dataclass(frozen=True)
class FrameSet:
    """A set of clips in one embedding."""

    name: str
    role: Role
    note: str
    """What it is; where its score stands on a part of the clips, on how many."""
    names: list[str]
    frames: list[np.ndarray]  # each [T, D]
    hours: float
    notes: list[ClipNote]
    """What is said of each clip."""
    counterparts: list[str] | None = None
    """The clip of the reference that each was made after; None: that of its name, if there is one."""

    @property
    def num_frames(self) -> int:
        """Frames of all clips."""
        return sum(map(len, self.frames))


def held_clips(folder: EmbeddedFolder, clips: Sequence[EmbeddedClip], seed: int) -> list[EmbeddedClip]:
    """As many of `clips` as `MAX_HELD_VALUES` allow, random ones by `seed`, in their order."""
    left = MAX_HELD_VALUES // folder.info.width
    if sum(clip.facts.num_frames for clip in clips) <= left:
        return list(clips)
    kept = set()
    for clip in in_random_order(clips, seed):
        left -= clip.facts.num_frames
        if left < 0:
            break
        kept.add(clip.name)
    return [clip for clip in clips if clip.name in kept]


def in_random_order(clips: Sequence[EmbeddedClip], seed: int) -> list[EmbeddedClip]:
    """`clips` in an order that depends on nothing but their content and `seed`."""
    return sorted(
        clips, key=lambda clip: (hashlib.sha256(f"{seed}:{clip.sha256}".encode()).digest(), clip.name)
    )


def frame_set(
    folder: EmbeddedFolder,
    clips: Sequence[EmbeddedClip],
    name: str,
    role: Role,
    note: str,
    seed: int,
    notes: Mapping[str, ClipNote],
) -> FrameSet:
    """The set of some clips of `folder`; `notes` say something of them by their names."""
    held = held_clips(folder, clips, seed)
    if len(held) < len(clips):
        note = f"{note} Scored on {len(held)} random clips of {len(clips)}, which fit into memory."
    return FrameSet(
        name=name,
        role=role,
        note=note,
        names=[clip.name for clip in held],
        frames=[folder.frames(clip) for clip in held],
        hours=sum(clip.facts.duration_s for clip in held) / 3600.0,
        notes=[notes.get(clip.name, NOTHING) for clip in held],
    )


def noise_set(
    embedding: Embedding, num_clips: int, duration_s: float, rms: float, seed: int
) -> FrameSet | None:
    """White Gaussian noise with the loudness `rms`; None if the clips are too short for the embedding."""
    rate = embedding.info.sample_rate
    num_clips = min(num_clips, MAX_BASELINE_CLIPS)
    length = max(1, round(min(duration_s, PIECE_S) * rate))

    def clips() -> Iterator[np.ndarray]:
        for index in range(num_clips):
            noise = np.random.default_rng([seed, index]).standard_normal((1, length), dtype=np.float32)
            yield np.clip(np.float32(rms) * noise, -1.0, 1.0)

    frames = _embed(embedding, clips(), rate)
    names = [str(index) for index in range(num_clips)]
    return _made(NOISE, "Gaussian noise as loud as the reference.", names, frames, length / rate)


def reconstructed_set(
    embedding: Embedding, codec: Codec, folder: EmbeddedFolder, num_clips: int, seed: int
) -> tuple[FrameSet | None, list[Unusable]]:
    """Random clips of the reference, at most `PIECE_S` of each, encoded and decoded by `codec`."""
    chosen = in_random_order(folder.clips, seed)[: min(num_clips, MAX_BASELINE_CLIPS)]
    unusable: list[Unusable] = []
    seconds: list[float] = []
    names: list[str] = []

    def clips() -> Iterator[np.ndarray]:
        for clip in track(chosen, f"{embedding.info.name}: {RECONSTRUCTED}"):
            try:
                samples = load_audio(
                    clip.path, codec.sample_rate, codec.channels, Audio(max_duration_s=PIECE_S)
                )
            except AudioError as error:  # silence, which has nothing to reconstruct
                unusable.append(Unusable(RECONSTRUCTED, clip.name, str(error)))
                continue
            seconds.append(samples.shape[1] / codec.sample_rate)
            names.append(clip.name)
            audio = torch.from_numpy(samples)[None].to(codec.device)
            yield codec.reconstruct(audio)[0].clamp(-1.0, 1.0).cpu().numpy()

    frames = _embed(embedding, clips(), codec.sample_rate)
    note = f"Clips of the reference, encoded and decoded by {codec.info.id}: what the codec loses."
    made = _made(RECONSTRUCTED, note, names, frames, float(np.mean(seconds)) if seconds else 0.0)
    return made, unusable


def _embed(embedding: Embedding, clips: Iterator[np.ndarray], sample_rate: int) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    batch: list[np.ndarray] = []
    for samples in clips:
        batch.append(samples)
        if len(batch) == BASELINE_BATCH:
            frames += embed_clips(embedding, batch, sample_rate)
            batch = []
    return frames + (embed_clips(embedding, batch, sample_rate) if batch else [])


def _made(
    name: str, note: str, names: Sequence[str], frames: Sequence[np.ndarray], mean_s: float
) -> FrameSet | None:
    kept = [(clip, item) for clip, item in zip(names, frames, strict=True) if len(item)]
    if not kept:
        return None
    return FrameSet(
        name=name,
        role="baseline",
        note=note,
        names=[clip for clip, _ in kept],
        frames=[item for _, item in kept],
        hours=len(kept) * mean_s / 3600.0,
        notes=[NOTHING] * len(kept),
    )
