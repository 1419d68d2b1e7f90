"""Training tokens that can be searched: which clip has the run of tokens that this one has?

Only the first codebook is compared, as in MusicGen (arXiv:2306.05284): it carries most of the sound, and the
others say little once it differs. Of each training clip, the n-gram of `NGRAM` tokens at every `STRIDE`-th
frame is indexed; of a query, the n-gram at every frame is looked up, so a copy is found at any offset. Each
hit names a training clip and an offset, and there the tokens are compared one by one.

What is found, w frames being the window and p the share of its tokens that match:

- A common run of `NGRAM + STRIDE - 1` = 13 frames holds an indexed n-gram whatever its offset. Every exact
  match of that length is found.
- A window holds at least ⌊(w - NGRAM + 1) / STRIDE⌋ indexed n-grams, which do not overlap. If mismatches are
  independent, none of them is hit with probability (1 - p^NGRAM)^that: `miss_probability`. For 5 s at
  50 frames/s and p = 0.8, 1.1e-4; for 2 s, 0.035. Mismatches in clumps are found more surely. Evenly spread
  ones, one every 5 frames, leave no run of 6 and would all be missed.
- n-grams that occur more than `MAX_OCCURRENCES` times are passed over: silence and steady tones, which half
  the training set shares. A query that has no others cannot be searched; its result says so. Clips shorter
  than an n-gram are not found.

Memory for 10,000 hours at 50 frames/s: 1.8e9 frames; 1.8e9 / 8 n-grams of 8 bytes = 1.8 GB, and the first
codebook beside it, 2 bytes a frame = 3.6 GB. Both are memory-mapped files. The first is what a search goes
through; of the second it touches the places of the hits. At 86 frames/s: 3.1 GB and 6.2 GB.

Shapes: K codebooks, T frames, A alignments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...core.files import atomic_folder
from .postings import Postings, PostingsWriter

NGRAM = 6
"""Tokens that are looked up together."""
STRIDE = 8
"""Frames from one indexed n-gram to the next."""
MAX_OCCURRENCES = 256
"""n-grams that occur more often than this tell nothing apart."""
MAX_ALIGNMENTS = 512
"""Of the places that a query hits, those hit most often are compared token by token."""
WINDOW_S = 5.0
PARTIAL_SHARE = 0.8

_ENTRIES, _TOKENS, _CLIPS = "ngrams.uint64", "first_codebook.uint16", "clips.json"
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Fibonacci hashing


@dataclass(frozen=True)
class TokenMatch:
    """The window of a query that is most like one of the training set."""

    share: float
    """Share of the window's tokens that are the same; 0 if nothing was hit."""
    longest_run: int
    """Frames of the longest run that any training clip has too, hit by the same look-ups."""
    clip: int | None
    """The training clip; None if nothing was hit."""
    clip_frame: int
    """First frame of the window in the training clip; below 0 if the window begins before the clip."""
    query_frame: int
    num_frames: int
    """Length of the window."""
    searchable: bool
    """False if every n-gram of the query is too frequent, or it is shorter than one."""

    @property
    def is_exact(self) -> bool:
        """Whether all tokens of the window are the same."""
        return self.share == 1.0

    @property
    def is_partial(self) -> bool:
        """Whether at least 80 % of them are."""
        return self.share >= PARTIAL_SHARE


def miss_probability(window_frames: int, share: float) -> float:
    """Probability that a window of which `share` of the tokens match, independently, is not hit."""
    num_ngrams = max(0, (window_frames - NGRAM + 1) // STRIDE)
    return float((1.0 - share**NGRAM) ** num_ngrams)


def index_bytes(num_frames: int) -> int:
    """Size of the index of `num_frames` frames of training tokens, without the tokens themselves."""
    return num_frames // STRIDE * 8


def hash_ngrams(tokens: np.ndarray, stride: int) -> np.ndarray:
    """Hashes, uint32, of the n-grams that start at every `stride`-th of the tokens `[T]`."""
    num = max(0, (len(tokens) - NGRAM) // stride + 1)
    starts = np.arange(num) * stride
    hashes = np.zeros(num, np.uint64)
    for i in range(NGRAM):
        hashes = (hashes ^ tokens[starts + i].astype(np.uint64)) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return (hashes >> np.uint64(32)).astype(np.uint32)


def build_token_index(folder: Path, clips: Iterable[np.ndarray]) -> TokenIndex:
    """Index the codes `[K, T]` of training clips, in order, in `folder`; one clip is held at a time.

    Raises `UserError` for more n-grams than 32 bits can count: 10,000 hours have a twentieth of that.
    """
    frames = []
    num_places = 0
    with atomic_folder(folder) as partial:
        writer = PostingsWriter(partial / _ENTRIES)
        with (partial / _TOKENS).open("wb") as file:
            for codes in clips:
                tokens = np.ascontiguousarray(codes[0], dtype=np.uint16)
                file.write(tokens.tobytes())
                hashes = hash_ngrams(tokens, STRIDE)
                writer.add(hashes, num_places + np.arange(len(hashes)))
                num_places += len(hashes)
                frames.append(len(tokens))
        writer.finish()
        (partial / _CLIPS).write_text(json.dumps(frames), encoding="utf-8")
    return TokenIndex(folder)


class TokenIndex:
    """An index that `build_token_index` wrote, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        frames = np.asarray(json.loads((folder / _CLIPS).read_text(encoding="utf-8")), dtype=np.int64)
        self.num_frames = frames  # [clips]
        self._postings = Postings(folder / _ENTRIES)
        self._first_frame = np.cumsum(frames) - frames
        num_places = np.maximum(0, (frames - NGRAM) // STRIDE + 1)
        self._first_place = np.cumsum(num_places) - num_places
        self._tokens: np.ndarray = (
            np.memmap(folder / _TOKENS, dtype=np.uint16, mode="r") if frames.sum() else np.empty(0, np.uint16)
        )

    def __len__(self) -> int:
        return len(self.num_frames)

    def window_frames(self, frame_rate: float) -> int:
        """5 s in frames, or the length of the longest training clip if all are shorter."""
        longest = int(self.num_frames.max(initial=1))
        return min(round(WINDOW_S * frame_rate), longest)

    def search(self, codes: np.ndarray, window_frames: int, own: int | None = None) -> TokenMatch:
        """The best match of the codes `[K, T]`, over windows of `window_frames` or of T if that is less.

        Frames of a window for which the training clip has none count as mismatches. `own` is a training clip
        that is not looked at: the query itself, where it is one.
        """
        tokens = codes[0]
        window = min(window_frames, len(tokens))
        hashes = hash_ngrams(tokens, 1)
        hits = self._postings.look_up(hashes, MAX_OCCURRENCES)
        searchable = len(hashes) > hits.num_too_frequent
        clips, offsets = self._alignments(hits.queries, hits.places, own)
        if not len(clips):
            return TokenMatch(0.0, 0, None, 0, 0, window, searchable)
        equal = self._compare(tokens, clips, offsets)
        shares = _window_sums(equal, window) / window
        best, start = (int(i) for i in np.unravel_index(np.argmax(shares), shares.shape))
        return TokenMatch(
            share=float(shares[best, start]),
            longest_run=_longest_run(equal),
            clip=int(clips[best]),
            clip_frame=start + int(offsets[best]),
            query_frame=start,
            num_frames=window,
            searchable=searchable,
        )

    def _alignments(
        self, queries: np.ndarray, places: np.ndarray, own: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Clips and offsets `[A]` (training frame minus query frame) of the hits, most hits first."""
        clips = np.searchsorted(self._first_place, places, side="right") - 1
        offsets = (places - self._first_place[clips]) * STRIDE - queries
        pairs, counts = np.unique(np.stack([clips, offsets]), axis=1, return_counts=True)
        kept = pairs[0] != own if own is not None else np.ones(len(counts), bool)
        pairs, counts = pairs[:, kept], counts[kept]
        order = np.argsort(-counts, kind="stable")[:MAX_ALIGNMENTS]
        return pairs[0, order], pairs[1, order]

    def _compare(self, tokens: np.ndarray, clips: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Whether each token is that of the training clip, `[A, T]`; false beyond the clip's ends."""
        frames = offsets[:, None] + np.arange(len(tokens))
        inside = (frames >= 0) & (frames < self.num_frames[clips, None])
        places = np.where(inside, self._first_frame[clips, None] + frames, 0)
        same: np.ndarray = inside & (self._tokens[places] == tokens.astype(np.uint16))
        return same


def _window_sums(equal: np.ndarray, window: int) -> np.ndarray:
    """Number of true values in each window, `[A, T - window + 1]`."""
    sums = np.pad(np.cumsum(equal, axis=1), ((0, 0), (1, 0)))
    windows: np.ndarray = sums[:, window:] - sums[:, :-window]
    return windows


def _longest_run(equal: np.ndarray) -> int:
    """Length of the longest run of true values in any row of `[A, T]`."""
    frames = np.arange(1, equal.shape[1] + 1)
    last_false = np.maximum.accumulate(np.where(equal, 0, frames), axis=1)
    return int((frames - last_false).max(initial=0))
