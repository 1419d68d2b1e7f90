"""Which short clips share a row of which batch: a pure function of (seed, step)."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .sampler import Crop


class PackedSampler:
    """Shuffled passes over rows: short clips that share one, and crops of longer clips, one a row.

    Which clips share a row is decided once. Clips shorter than a row come up once a pass; of the others, one
    as long as n rows comes up n times, as in `CropSampler`. As there, any process can compute any rows of
    any batch.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, row_length: int, gap: int, seed: int) -> None:
        """All lengths are in one unit, such as frames; `gap` is left between two clips.

        Raises `ValueError` if there are no clips.
        """
        self._lengths = np.asarray(lengths, dtype=np.int64)
        if not len(self._lengths):
            raise ValueError("no clips to sample from")
        self._row_length = row_length
        self._seed = seed % 2**64  # NumPy takes no negative seeds
        short = np.flatnonzero(self._lengths < row_length)
        order = np.random.default_rng([self._seed, 0]).permutation(short)
        self.packed = pack(order, self._lengths, row_length, gap)
        """Rows of short clips, by their numbers."""
        long = np.flatnonzero(self._lengths >= row_length)
        self._long = np.repeat(long, self._lengths[long] // row_length)
        self.num_rows = len(self.packed) + len(self._long)
        """Rows of one pass."""
        self.most_clips = max(map(len, self.packed), default=1)
        """Clips in the fullest row."""
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 1, epoch]).permutation(self.num_rows)

    def draw(self, step: int, batch_size: int, rows: range) -> list[list[Crop]]:
        """The clips in each of `rows` of the global batch of `step`, in their order in the row."""
        found = []
        for position in range(step * batch_size + rows.start, step * batch_size + rows.stop):
            epoch, place = divmod(position, self.num_rows)
            row = int(self._order(epoch)[place])
            if row < len(self.packed):
                found.append([Crop(clip, 0) for clip in self.packed[row]])
                continue
            clip = int(self._long[row - len(self.packed)])
            room = int(self._lengths[clip]) - self._row_length
            start = int(np.random.default_rng([self._seed, 2, position]).integers(room + 1))
            found.append([Crop(clip, start)])
        return found


# Best fit: D. S. Johnson et al., "Worst-case performance bounds for simple one-dimensional packing
# algorithms", SIAM J. Comput. 3 (1974).
def pack(clips: np.ndarray, lengths: np.ndarray, row_length: int, gap: int) -> list[list[int]]:
    """Share out `clips`, in their order, among rows: each goes where the least room is left after it.

    `lengths` are those of all clips, by number, and none of `clips` is longer than a row.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room → rows that have as much after a further gap
    rooms: list[int] = []  # the keys, rising
    for clip in clips.tolist():
        length = int(lengths[clip])
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            row, left = len(rows), row_length - length
            rows.append([clip])
        else:
            room = rooms[place]
            row, left = by_room[room].pop(), room - length
            rows[row].append(clip)
            if not by_room[room]:
                del by_room[room], rooms[place]
        left -= gap
        if left > 0:
            if left not in by_room:
                bisect.insort(rooms, left)
            by_room.setdefault(left, []).append(row)
    return rows
