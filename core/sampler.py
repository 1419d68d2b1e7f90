"""Which part of which clip goes where in which batch: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Crop:
    """A piece of one clip."""

    clip: int
    start: int
    """First element of the crop; 0 where the clip is shorter than a crop."""


class CropSampler:
    """Shuffled passes over all clips; a clip as long as n crops comes up n times a pass.

    Every draw is computed from the seed and the position in the stream, so there is no state to save and
    any process can compute any rows of any batch.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, crop: int, seed: int) -> None:
        """`lengths` and `crop` are in the same unit, frames or samples; raises `ValueError` if empty."""
        self._lengths = np.asarray(lengths, dtype=np.int64)
        if not len(self._lengths):
            raise ValueError("no clips to sample from")
        self._crop = crop
        self._seed = seed % 2**64  # NumPy takes no negative seeds
        self._slots = np.repeat(np.arange(len(self._lengths)), np.maximum(1, self._lengths // crop))
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 0, epoch]).permutation(self._slots)

    def draw(self, step: int, batch_size: int, rows: range) -> list[Crop]:
        """The crops in `rows` of the global batch of `step`."""
        crops = []
        for position in range(step * batch_size + rows.start, step * batch_size + rows.stop):
            epoch, slot = divmod(position, len(self._slots))
            clip = int(self._order(epoch)[slot])
            room = int(self._lengths[clip]) - self._crop
            start = (
                int(np.random.default_rng([self._seed, 1, position]).integers(room + 1)) if room > 0 else 0
            )
            crops.append(Crop(clip, start))
        return crops


@dataclass(frozen=True)
class Chunk:
    """A piece of one recording, as a row of batches goes through it."""

    clip: int
    start: int
    """First element; 0 where the recording begins. The last chunk of a recording may be shorter."""
    recording: int
    """How many recordings the row has begun before."""


class ConsecutiveSampler:
    """Each row of the batch goes through one recording after another, chunk after chunk.

    Every row goes through all recordings, each time in a new order of its own. As in `CropSampler` there is
    no state: where a row stands is computed from the seed and the step.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, chunk: int, seed: int) -> None:
        """`lengths` and `chunk` are in the same unit, frames or samples; raises `ValueError` if empty."""
        lengths = np.asarray(lengths, dtype=np.int64)
        if not len(lengths):
            raise ValueError("no clips to sample from")
        self._num_chunks = np.maximum(1, -(-lengths // chunk))
        self._total = int(self._num_chunks.sum())  # chunks of one pass, whatever its order
        self._chunk = chunk
        self._seed = seed % 2**64  # NumPy takes no negative seeds
        self._order = lru_cache(maxsize=1024)(self._shuffled)

    def _shuffled(self, row: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The recordings of one pass in order, and how many chunks there are up to the end of each."""
        order = np.random.default_rng([self._seed, 3, row, epoch]).permutation(len(self._num_chunks))
        return order.astype(np.int32), self._num_chunks[order].cumsum()

    def draw(self, step: int, rows: range) -> list[Chunk]:
        """The chunks in `rows` of the global batch of `step`."""
        epoch, offset = divmod(step, self._total)
        chunks = []
        for row in rows:
            order, ends = self._order(row, epoch)
            i = int(np.searchsorted(ends, offset, side="right"))
            clip = int(order[i])
            position = offset - int(ends[i] - self._num_chunks[clip])
            chunks.append(Chunk(clip, position * self._chunk, epoch * len(order) + i))
        return chunks
