"""Nearest neighbours in an embedding: the training clip that a clip is closest to, whole or by windows.

Exact: every query is compared with every training clip, block after block, and only the best is kept. So the
training set is never held: memory is the queries' windows, one clip and one block (`BLOCK_BYTES`), whatever
the size of the set. The time is one matrix product. faiss's exact index (`IndexFlatIP`) does the same product
but holds all vectors: 10,000 hours in windows of 3 s, one every 64 ms, are 5.6e8 · 47 · 128 · 4 bytes =
13.5 TB; its compressed indices are approximate, and a missed copy is what this must not have. So torch does
it.

A window is `WINDOW_S` of frames one after another, less its mean: unlike a mean over time it tells a tune
from another one. Training windows start at every frame, so a shift costs at most half a hop of misalignment.
Windows near silence have short vectors and are not stretched to full length, so that silences are not alike.

Shapes: C channels, N samples, T frames, D width, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.device import best_device

WINDOW_S = 3.0
RMS = 0.1
"""Root mean square that `level` scales clips to."""
BLOCK_S = 0.05
GATE = 0.01
"""Blocks with less than this share of the loudest block's power do not count for the level."""
BLOCK_BYTES = 64 << 20
"""Training windows that are compared at once."""
QUIET = 0.1
"""Vectors shorter than this share of the queries' longest are divided by that, not by their own length."""


@dataclass(frozen=True)
class Neighbour:
    """The training clip that a query is nearest to."""

    cosine: float
    """Of the centred vectors; -1 if there was no training clip to compare with."""
    clip: int | None
    clip_s: float
    """Where in the training clip."""
    query_s: float


def level(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """`samples` [C, N] at a root mean square of `RMS`, so that gain does not matter; silence stays silence.

    Measured where there is sound: blocks of 50 ms more than 20 dB below the loudest do not count.
    """
    power = np.square(samples, dtype=np.float64).mean(axis=0)
    block = max(1, round(BLOCK_S * sample_rate))
    blocks = np.pad(power, (0, -len(power) % block)).reshape(-1, block).mean(axis=1)
    loudest = float(blocks.max(initial=0.0))
    if loudest < 1e-12:
        return samples
    levelled: np.ndarray = samples * (RMS / np.sqrt(blocks[blocks > GATE * loudest].mean()))
    return levelled.astype(np.float32)


class NeighbourSearch:
    """The nearest training clips of some queries; training clips come one after another."""

    def __init__(
        self,
        queries: Sequence[np.ndarray],
        hop_s: float,
        own: Sequence[int | None] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`queries` are the frames `[T, D]` of each, `hop_s` the seconds between frames.

        `own[i]` is the training clip that query `i` itself is, which does not count. A query that is shorter
        than `WINDOW_S` is one window; a training clip that is shorter than a query's window cannot be its
        neighbour window by window.
        """
        self._hop_s = hop_s
        self._own = list(own) if own is not None else [None] * len(queries)
        device = device or best_device()
        self._whole = _Nearest(len(queries), device)
        self._windows = _Nearest(len(queries), device)
        longest = max(1, round(WINDOW_S / hop_s))
        for index, query in enumerate(queries):
            if not len(query):
                continue
            frames = torch.from_numpy(np.ascontiguousarray(query, dtype=np.float32))
            self._whole.add_query(index, frames.mean(0, keepdim=True), 1)
            self._windows.add_query(index, frames, min(longest, len(frames)))

    def add(self, clip: int, frames: np.ndarray, start_s: float = 0.0) -> None:
        """Compare the frames `[T, D]` of training clip number `clip`, or of its part from `start_s` on."""
        if not len(frames):
            return
        training = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32))
        skipped = {index for index, own in enumerate(self._own) if own == clip}
        first = round(start_s / self._hop_s)
        self._whole.compare(clip, training.mean(0, keepdim=True), first, skipped)
        self._windows.compare(clip, training, first, skipped)

    def clip_neighbours(self) -> list[Neighbour]:
        """The nearest by the mean of all frames, one a query."""
        return self._whole.neighbours(self._hop_s)

    def window_neighbours(self) -> list[Neighbour]:
        """The nearest by the best of the query's windows, one a query."""
        return self._windows.neighbours(self._hop_s)


@dataclass
class _Group:
    """The query windows of one length."""

    vectors: Tensor  # [W, length · D], as long as their windows are loud
    query: np.ndarray  # [W] int64
    start: np.ndarray  # [W] int64, in frames
    quiet: float
    """Length below which vectors are not stretched."""


class _Nearest:
    """The largest cosine that each query has met so far."""

    def __init__(self, num_queries: int, device: torch.device) -> None:
        self._device = device
        self._added: dict[int, list[tuple[int, int, Tensor]]] = {}  # by length: query, start, vector
        self._groups: dict[int, _Group] | None = None
        self._cosines = np.full(num_queries, -1.0)
        self._found: list[tuple[int, int, int] | None] = [None] * num_queries  # clip, its frame, the query's

    def add_query(self, query: int, frames: Tensor, length: int) -> None:
        """Add windows of the frames `[T, D]`, without overlap, the last moved back to end with the clip."""
        last = len(frames) - length
        for start in sorted({*range(0, last + 1, length), last}):
            vector = frames[start : start + length].flatten()
            self._added.setdefault(length, []).append((query, start, vector - vector.mean()))

    def _grouped(self) -> dict[int, _Group]:
        if self._groups is None:
            self._groups = {}
            for length, windows in sorted(self._added.items()):
                vectors = torch.stack([vector for _, _, vector in windows]).to(self._device)
                norms = vectors.norm(dim=1, keepdim=True)
                quiet = max(1e-6, QUIET * float(norms.max()))
                self._groups[length] = _Group(
                    vectors / norms.clamp(min=quiet),
                    np.array([query for query, _, _ in windows]),
                    np.array([start for _, start, _ in windows]),
                    quiet,
                )
            self._added.clear()
        return self._groups

    def compare(self, clip: int, frames: Tensor, begin: int, skipped: set[int]) -> None:
        """Compare every window of the frames `[T, D]` of a training clip, from its frame `begin` on."""
        frames = frames.to(self._device)
        for length, group in self._grouped().items():
            if length > len(frames):
                continue
            windows = frames.unfold(0, length, 1).transpose(1, 2)  # [T - length + 1, length, D], a view
            block = max(1, BLOCK_BYTES // (4 * group.vectors.shape[1]))
            for first in range(0, len(windows), block):
                vectors = windows[first : first + block].flatten(1)
                vectors = vectors - vectors.mean(dim=1, keepdim=True)
                vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=group.quiet)
                cosines, places = (group.vectors @ vectors.T).max(dim=1)
                self._keep(clip, begin + first, group, cosines.cpu().numpy(), places.cpu().numpy(), skipped)

    def _keep(
        self,
        clip: int,
        first: int,
        group: _Group,
        cosines: np.ndarray,
        places: np.ndarray,
        skipped: set[int],
    ) -> None:
        for row in np.flatnonzero(cosines > self._cosines[group.query]):
            query, cosine = int(group.query[row]), float(cosines[row])
            if cosine > self._cosines[query] and query not in skipped:
                self._cosines[query] = cosine
                self._found[query] = (clip, first + int(places[row]), int(group.start[row]))

    def neighbours(self, hop_s: float) -> list[Neighbour]:
        """What was found, one a query."""
        return [
            Neighbour(float(cosine), None, 0.0, 0.0)
            if found is None
            else Neighbour(min(1.0, float(cosine)), found[0], found[1] * hop_s, found[2] * hop_s)
            for cosine, found in zip(self._cosines, self._found, strict=True)
        ]
