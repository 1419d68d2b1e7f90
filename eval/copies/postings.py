"""Sorted lists of places by key, on disk and memory-mapped: where in the training data a hash occurs.

An entry is one uint64, the key in its upper 32 bits and the place in its lower 32; the file is the sorted
entries and nothing else. A look-up is two binary searches.

Shapes: Q keys looked up, M entries found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...core.errors import UserError

ENTRY_BYTES = 8
MAX_PLACES = 2**32
_KEY_SHIFT = np.uint64(32)


@dataclass(frozen=True)
class Hits:
    """Where keys that were looked up occur."""

    queries: np.ndarray  # [M] int64: which of the keys
    places: np.ndarray  # [M] int64
    num_too_frequent: int
    """Keys that occur more often than was allowed; they have no hits."""


class PostingsWriter:
    """Collects entries in a file, as they come; `finish` sorts them in place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def add(self, keys: np.ndarray, places: np.ndarray) -> None:
        """Append entries; keys `[M]` and places `[M]` are integers of 32 bits.

        Raises `UserError` for a place beyond that.
        """
        if len(places) and int(places.max()) >= MAX_PLACES:
            raise UserError(
                f"the training set has more than {MAX_PLACES:,} places to index:"
                " search for copies in a part of it"
            )
        entries = (keys.astype(np.uint64) << _KEY_SHIFT) | places.astype(np.uint64)
        self._file.write(entries.tobytes())

    def finish(self) -> Postings:
        """Sort, and open for look-ups."""
        self._file.close()
        if self._path.stat().st_size:
            entries = np.memmap(self._path, dtype=np.uint64, mode="r+")
            entries.sort()
            entries.flush()
        return Postings(self._path)


class Postings:
    """The entries of a finished file."""

    def __init__(self, path: Path) -> None:
        empty = not path.stat().st_size  # which cannot be mapped
        self._entries: np.ndarray = (
            np.empty(0, np.uint64) if empty else np.memmap(path, dtype=np.uint64, mode="r")
        )

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, keys: np.ndarray, max_occurrences: int) -> Hits:
        """All places of each of the keys `[Q]` that has at most `max_occurrences` of them."""
        bounds = keys.astype(np.uint64) << _KEY_SHIFT
        first = np.searchsorted(self._entries, bounds)
        # The largest entry of a key, so that the largest key needs no 65th bit.
        last = np.searchsorted(self._entries, bounds | np.uint64(MAX_PLACES - 1), side="right")
        counts = last - first
        frequent = counts > max_occurrences
        counts[frequent] = 0
        queries = np.repeat(np.arange(len(keys)), counts)
        within = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
        entries = self._entries[np.repeat(first, counts) + within]
        places = (entries & np.uint64(MAX_PLACES - 1)).astype(np.int64)
        return Hits(queries, places, int(frequent.sum()))
