"""A folder of audio to embeddings: threads read ahead, one batch after another is embedded, packs are cached.

Where a light embedding runs on the CPU, the threads that read embed each piece by itself, and nothing waits.

Files, sorted by name, are cut into shards of `SHARD_FILES`; of n processes, process r embeds the shards whose
number leaves the remainder r. Which pieces share a batch depends on the files of a shard alone, so the frames
are the same whatever the number of processes. A process that is killed loses the shard underway; the same
command again goes on after the last one.

Shapes: N samples, T frames, D width.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..core.audio import AudioError
from ..core.device import best_device
from ..core.progress import progress_bar
from ..core.run import num_processes, process_index
from ..tokenize.read_ahead import read_ahead
from .embedding import Embedding, EmbeddingInfo
from .embedding_cache import ClipFacts, EmbeddingCache
from .folder_audio import AudioFile, Head, find_audio, read_pieces
from .process_group import Told, gather

SHARD_FILES = 64
BATCH_SAMPLES = {"cpu": 1 << 20}
BATCH_SAMPLES_ELSEWHERE = 1 << 23
"""Samples that the network sees at once."""
MAX_WAITING_SAMPLES = 1 << 24
"""Samples, 64 MiB, that wait for others of their length to make up a batch."""


@dataclass(frozen=True)
class EmbeddedClip:
    """A file that was embedded."""

    name: str
    path: Path
    sha256: str
    facts: ClipFacts


@dataclass(frozen=True)
class Unusable:
    """A file that was not, and why."""

    set: str
    file: str
    reason: str


@dataclass(frozen=True)
class EmbeddedFolder:
    """The clips of a folder in one embedding; their frames are in the cache."""

    folder: Path
    info: EmbeddingInfo
    clips: list[EmbeddedClip]
    unusable: list[Unusable]
    cache: EmbeddingCache

    def frames(self, clip: EmbeddedClip) -> np.ndarray:
        """The frames [T, D] float32 of one clip."""
        return self.cache.frames(clip.sha256)

    @property
    def num_frames(self) -> int:
        """Frames of all clips."""
        return sum(clip.facts.num_frames for clip in self.clips)

    @property
    def hours(self) -> float:
        """Duration of all clips."""
        return sum(clip.facts.duration_s for clip in self.clips) / 3600.0


def embed_folder(
    embedding: Embedding, folder: Path, cache: Path, *, set_name: str, num_threads: int | None = None
) -> EmbeddedFolder:
    """Embed all audio files in `folder`, but for those that the `cache` has.

    With several processes each does its share, and all return the whole. Files that cannot be read, or are
    shorter than a frame, are listed as `unusable` in the set `set_name`.

    Raises `UserError` if the folder has no audio file.
    """
    files = find_audio(folder)
    packs = EmbeddingCache(cache, embedding.info)
    # As it was at the beginning: what is embedded meanwhile would make batches depend on who was faster.
    known = packs.known()
    embed_in_readers = embedding.is_light and best_device().type == "cpu"
    numbers = range(process_index(), -(-len(files) // SHARD_FILES), num_processes())
    shards = [files[number * SHARD_FILES : (number + 1) * SHARD_FILES] for number in numbers]
    told: list[Told] = []  # name, hash if it could be embedded, else the reason
    num_threads = num_threads or min(16, os.cpu_count() or 1)
    reading = read_ahead(
        [file for shard in shards for file in shard],
        lambda file: _pieces(file, embedding, known, embed_in_readers),
        num_threads=num_threads,
        num_ahead=2 * num_threads,
        depth=2,
    )
    with progress_bar() as bar, _threads_in_torch(1 if embed_in_readers else torch.get_num_threads()):
        task = bar.add_task(f"{embedding.info.name}: {set_name}", total=sum(map(len, shards)))
        for shard in shards:
            batches = _Batches(embedding)
            for _ in shard:
                file, parts = next(reading)
                told.append(_take(file, parts, known, batches))
                bar.advance(task)
            packs.add(*batches.finish())
    reading.close()
    return _embedded(embedding.info, folder, files, gather(told), packs, set_name)


@dataclass(frozen=True)
class _Piece:
    """A part of a clip."""

    samples: np.ndarray  # [N]
    frames: np.ndarray | None  # [T, D]; None before it is embedded


def _pieces(
    file: AudioFile, embedding: Embedding, known: frozenset[str], embed: bool
) -> Iterator[Head | _Piece]:
    for part in read_pieces(file, embedding.info.sample_rate, known):
        if isinstance(part, Head):
            yield part
        else:
            alone = embed or not embedding.frames(len(part))
            yield _Piece(part, _embed(embedding, part[None])[0] if alone else None)


def _embed(embedding: Embedding, samples: np.ndarray) -> np.ndarray:
    """Samples [B, N] to frames [B, T, D] float32."""
    if not embedding.frames(samples.shape[1]):
        return np.empty((len(samples), 0, embedding.info.width), np.float32)
    with torch.inference_mode():
        frames: np.ndarray = embedding.embed(torch.from_numpy(samples)[:, None]).float().cpu().numpy()
    return frames


@contextmanager
def _threads_in_torch(number: int) -> Iterator[None]:
    """Each operation on `number` threads: those of light ones do little but wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _take(file: AudioFile, parts: Iterator[Head | _Piece], known: frozenset[str], batches: _Batches) -> Told:
    """Put the pieces of a file into batches; its name, hash and, if it cannot be used, the reason."""
    sha256 = ""
    try:
        for part in parts:
            if isinstance(part, Head):
                sha256 = part.sha256
                if sha256 in known or batches.has(sha256):
                    for _ in parts:  # a second copy in one shard
                        pass
                    break
                batches.begin(sha256)
            else:
                batches.add(sha256, part)
    except AudioError as error:
        batches.discard(sha256)
        return file.name, None, str(error)
    return file.name, sha256, ""


def _embedded(
    info: EmbeddingInfo,
    folder: Path,
    files: Sequence[AudioFile],
    told: Sequence[Told],
    packs: EmbeddingCache,
    set_name: str,
) -> EmbeddedFolder:
    packs.refresh()
    by_name = {name: (sha256, reason) for name, sha256, reason in told}
    clips, unusable = [], []
    for file in files:
        sha256, reason = by_name[file.name]
        if sha256 is not None and packs.facts(sha256).num_frames:
            clips.append(EmbeddedClip(file.name, file.path, sha256, packs.facts(sha256)))
            continue
        unusable.append(Unusable(set_name, file.name, reason or f"too short for a frame of {info.name}"))
    return EmbeddedFolder(folder, info, clips, unusable, packs)


class _Batches:
    """Pieces of equal length wait for each other until there is a batch of them."""

    def __init__(self, embedding: Embedding) -> None:
        self._embedding = embedding
        self._waiting: dict[int, list[tuple[str, int, np.ndarray]]] = defaultdict(list)
        self._num_waiting = 0
        self._frames: dict[str, dict[int, np.ndarray]] = {}  # of each clip, by the number of the piece
        self._num_pieces: dict[str, int] = {}
        self._num_samples: dict[str, int] = {}
        self._energy: dict[str, float] = {}
        self._discarded: set[str] = set()

    def has(self, sha256: str) -> bool:
        """Whether the clip is in this shard already."""
        return sha256 in self._frames and sha256 not in self._discarded

    def begin(self, sha256: str) -> None:
        """Start a clip, whose pieces follow."""
        self._discarded.discard(sha256)
        self._frames[sha256] = {}
        self._num_pieces[sha256] = self._num_samples[sha256] = 0
        self._energy[sha256] = 0.0

    def add(self, sha256: str, piece: _Piece) -> None:
        """The next piece of the clip."""
        samples = piece.samples
        number = self._num_pieces[sha256]
        self._num_pieces[sha256] += 1
        self._num_samples[sha256] += len(samples)
        self._energy[sha256] += float(np.dot(samples, samples))
        if piece.frames is not None:
            self._frames[sha256][number] = piece.frames
            return
        pieces = self._waiting[len(samples)]
        pieces.append((sha256, number, samples))
        self._num_waiting += len(samples)
        batch_samples = BATCH_SAMPLES.get(best_device().type, BATCH_SAMPLES_ELSEWHERE)
        if (len(pieces) + 1) * len(samples) > batch_samples:
            self._embed(len(samples))
        elif self._num_waiting > MAX_WAITING_SAMPLES:
            self._embed_all()

    def discard(self, sha256: str) -> None:
        """Forget the clip: its file turned out to be damaged. Pieces that wait are embedded for nothing."""
        self._discarded.add(sha256)

    def _embed(self, length: int) -> None:
        pieces = self._waiting.pop(length)
        self._num_waiting -= length * len(pieces)
        frames = _embed(self._embedding, np.stack([samples for _, _, samples in pieces]))
        for (sha256, number, _), item in zip(pieces, frames, strict=True):
            self._frames[sha256][number] = item

    def _embed_all(self) -> None:
        for length in sorted(self._waiting):
            self._embed(length)

    def finish(self) -> tuple[dict[str, np.ndarray], dict[str, ClipFacts]]:
        """The frames [T, D] and facts of all clips, by hash."""
        self._embed_all()
        frames, facts = {}, {}
        for sha256, pieces in self._frames.items():
            if sha256 in self._discarded:
                continue
            whole = np.concatenate([pieces[number] for number in range(self._num_pieces[sha256])])
            num_samples = self._num_samples[sha256]
            frames[sha256] = whole
            facts[sha256] = ClipFacts(
                duration_s=num_samples / self._embedding.info.sample_rate,
                rms=float(np.sqrt(self._energy[sha256] / num_samples)),
                num_frames=len(whole),
            )
        return frames, facts
