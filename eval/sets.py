"""The sets of clips that are scored: real, reconstructed, generated, noise.

Shapes: B clips in a batch, C channels, N samples.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch

from ..core.audio import AudioError, resample, to_channels
from ..core.audio_stream import AS_IT_IS
from ..core.files import read_jsonl
from ..core.label import Label
from ..core.schema import Audio
from ..core.sections import Split
from ..tokenize.codec import Codec
from ..tokenize.corpus import Clip, Corpus, read_clip
from ..tokenize.encode_clips import Store
from ..tokenize.latent_coding import latent_coding

BATCH_SAMPLES = 1 << 19
"""Samples that the codec sees at once; the longer the clips, the smaller the batches."""


@dataclass(frozen=True)
class Skipped:
    """A clip that could not be scored."""

    set: str
    clip: str
    reason: str


@dataclass
class ClipSet:
    """Clips at the codec's sample rate, in a fixed order."""

    audio: list[np.ndarray] = field(default_factory=list)  # each [C, N] float32
    labels: list[Mapping[str, Label]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Clip ids of real audio, file names of generated audio."""
    sources: list[str | None] = field(default_factory=list)
    """Of generated audio: the id of the real clip that lent its labels."""
    folder: Path | None = None
    """Of generated audio: where the files are."""

    def __len__(self) -> int:
        return len(self.audio)

    def add(
        self, audio: np.ndarray, labels: Mapping[str, Label], name: str, source: str | None = None
    ) -> None:
        """Append one clip."""
        self.audio.append(audio)
        self.labels.append(labels)
        self.names.append(name)
        self.sources.append(source)

    def first(self, num_clips: int) -> ClipSet:
        """The first `num_clips` clips, or all."""
        return ClipSet(
            self.audio[:num_clips],
            self.labels[:num_clips],
            self.names[:num_clips],
            self.sources[:num_clips],
            self.folder,
        )

    def with_audio(self, audio: list[np.ndarray]) -> ClipSet:
        """The same clips with other `audio`."""
        return ClipSet(audio, self.labels, self.names, self.sources)


def choose(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """`clips` in an order that depends on nothing but their ids and `seed`."""
    return sorted(clips, key=lambda clip: (zlib.crc32(f"{seed}:{clip.id}".encode()), clip.id))


def split_clips(corpus: Corpus, split: Split, seed: int) -> list[Clip]:
    """The clips of one split, shuffled by `seed`."""
    return choose([clip for clip in corpus.clips() if clip.split == split], seed)


def crops(
    samples: np.ndarray, crop_samples: int, max_crops: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """At most `max_crops` crops [C, crop_samples] of `samples` [C, N] that do not overlap, in random places.

    Audio that is not longer than a crop is returned whole.
    """
    num_samples = samples.shape[1]
    if num_samples <= crop_samples:
        return [samples]
    num_crops = min(max_crops, num_samples // crop_samples)
    # What is left over is shared out as gaps: sorted uniform cuts of the slack put no place at an advantage.
    slack = num_samples - num_crops * crop_samples
    starts = np.sort(rng.integers(0, slack + 1, size=num_crops)) + crop_samples * np.arange(num_crops)
    return [samples[:, start : start + crop_samples] for start in starts]


def real_clips(
    corpus: Corpus,
    clips: Sequence[Clip],
    codec: Codec,
    *,
    set_name: str,
    duration_s: float,
    max_clips: int,
    seed: int,
    skipped: list[Skipped],
    settings: Audio = AS_IT_IS,
) -> ClipSet:
    """Read `clips` in order, and crop to `duration_s` until there are `max_clips`.

    Where there are fewer files than clips to make, several crops come from each file. A file that cannot be
    read is noted in `skipped`. `settings` is the recipe's section `audio`: real clips are treated as those
    that the model has learnt from.
    """
    result = ClipSet()
    crop_samples = round(duration_s * codec.sample_rate)
    max_crops = max(1, -(-max_clips // max(1, len(clips))))
    for clip in clips:
        if len(result) == max_clips:
            break
        try:
            samples = read_clip(corpus, clip, codec.sample_rate, codec.channels, settings).samples
        except AudioError as error:
            skipped.append(Skipped(set_name, clip.source, str(error)))
            continue
        rng = np.random.default_rng([seed, zlib.crc32(clip.id.encode())])
        for crop in crops(samples, crop_samples, min(max_crops, max_clips - len(result)), rng):
            result.add(crop, clip.labels, clip.id)
    return result


def _read_sample(path: Path, codec: Codec) -> np.ndarray:
    """One generated file as [C, N] at the codec's rate; raises `AudioError`.

    Unlike `core.audio.load_audio` it takes silence: a model that falls silent has to be scored for it.
    """
    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"cannot be read: {error.error_string.rstrip('.').lower()}") from error
    if not len(samples):
        raise AudioError("holds no samples")
    if not np.isfinite(samples).all():
        raise AudioError("contains NaN or infinite samples")
    return resample(to_channels(samples.T, codec.channels), sample_rate, codec.sample_rate)


def generated_clips(
    folder: Path, codec: Codec, *, set_name: str, max_clips: int, skipped: list[Skipped]
) -> ClipSet:
    """The first `max_clips` of the files that `folder/samples.jsonl` lists; bad ones go to `skipped`."""
    result = ClipSet(folder=folder)
    for row in read_jsonl(folder / "samples.jsonl")[:max_clips]:
        try:
            audio = _read_sample(folder / row["file"], codec)
            result.add(audio, row["labels"], row["file"], row.get("source_id"))
        except AudioError as error:
            skipped.append(Skipped(set_name, row["file"], str(error)))
    return result


def reconstruct(codec: Codec, clips: ClipSet, store: Store = "codes") -> ClipSet:
    """`clips` encoded to what a run stores of them and decoded again, at their own lengths."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, samples in enumerate(clips.audio):
        by_length[samples.shape[1]].append(index)
    decoded: dict[int, np.ndarray] = {}
    for num_samples, indices in by_length.items():
        batch_size = max(1, BATCH_SAMPLES // num_samples)
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            audio = torch.from_numpy(np.stack([clips.audio[i] for i in batch])).to(codec.device)
            output = _there_and_back(codec, audio, store)
            decoded.update(zip(batch, output.clamp(-1.0, 1.0).cpu().numpy(), strict=True))
    return clips.with_audio([decoded[i] for i in range(len(clips))])


def _there_and_back(codec: Codec, audio: torch.Tensor, store: Store) -> torch.Tensor:
    if store == "codes":
        return codec.reconstruct(audio)
    coding = latent_coding(codec, store)
    return coding.decode(coding.encode(audio), audio.shape[-1])


def white_noise(clips: ClipSet, seed: int) -> ClipSet:
    """Gaussian noise in the shapes of `clips`, as loud as they are on average (root mean square)."""
    rng = np.random.default_rng(seed)
    rms = float(np.mean([np.sqrt(np.mean(np.square(samples, dtype=np.float64))) for samples in clips.audio]))
    noise = [(rms * rng.standard_normal(samples.shape)).astype(np.float32) for samples in clips.audio]
    return clips.with_audio(noise)
