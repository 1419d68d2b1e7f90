"""Copies of training data among generated clips: searched, calibrated on real audio, flagged.

Two statistics, each the largest that a clip reaches with any training clip:

- `tokens`: share of equal tokens of the first codebook in a window of 5 s (`token_index.py`). Finds what a
  token model repeats; blind to copies whose tokens changed, by noise, gain or a shift.
- `sound`: cosine of spectrograms in a window of 3 s (`neighbours.py` over `strong_mel.py`). Finds those too.

Real audio that the model has not seen resembles the training set as well: the same notes, the same
instruments. So the statistics of held-out real clips say what is unremarkable, and a generated clip is
flagged where it lies above their 99th percentile. About one in a hundred original clips does, for each
statistic.

Shapes: C channels, N samples, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...core.audio import AudioError
from ...core.device import best_device
from ...core.errors import UserError
from ...core.progress import track
from ..embedding import Embedding, embed_clips
from .neighbours import WINDOW_S, NeighbourSearch, level
from .strong_mel import FFT, SAMPLE_RATE, StrongMel
from .token_index import TokenMatch, build_token_index

LEVEL = 0.99
"""Quantile of the held-out clips above which a clip is flagged."""
MIN_HELD_OUT = 20
"""With fewer held-out clips nothing is flagged."""
MAX_FRAME_RATE = 1000.0
"""Above this many frames a second a token is hardly more than a sample, and equal tokens say nothing."""


@dataclass(frozen=True)
class Queries:
    """Clips whose sources are looked for."""

    names: Sequence[str]
    audio: Sequence[np.ndarray]  # each [C, N]
    codes: Sequence[np.ndarray] | None = None  # each [K, T]
    """Of generated clips one a clip; of held-out clips any number. None: tokens are not compared."""
    own: Sequence[int | None] | None = None
    """The training clip that a query itself is; it is left out. For calibration without a held-out split."""


@dataclass(frozen=True)
class Training:
    """What must not be reproduced."""

    names: Sequence[str]
    sample_rate: int
    """Hz, of all audio here and in the queries."""
    audio: Callable[[int], np.ndarray]
    """The audio `[C, N]` of a clip; raises `AudioError` if it cannot be read."""
    heard: Sequence[int]
    """Clips whose audio is compared: all, or those that time allows."""
    codes: Callable[[int], np.ndarray] | None = None
    """The codes `[K, T]` of a clip; None where there are no tokens."""
    frame_rate: float = 0.0
    """Frames of codes a second."""


@dataclass(frozen=True)
class Match:
    """Where a clip is most like the training set."""

    value: float
    clip: int | None
    """The training clip; None if it is like nothing there."""
    query_s: float
    """Where the alike part begins, in the clip."""
    clip_s: float
    """And in the training clip."""
    duration_s: float


@dataclass(frozen=True)
class Spread:
    """What values a statistic took."""

    num: int
    median: float
    p90: float
    max: float


@dataclass(frozen=True)
class Statistic:
    """One way to tell copies, with its calibration."""

    name: str
    note: str
    generated: Spread
    held_out: Spread | None
    threshold: float | None
    """99th percentile of the held-out clips; None with fewer than `MIN_HELD_OUT`."""
    flagged_share: float | None
    """Share of the generated clips above it."""


@dataclass(frozen=True)
class TokenCounts:
    """What is reproduced token by token, in windows of `window_s`."""

    window_s: float
    exact_share: float
    """Share of the clips with a window that is all in the training set."""
    partial_share: float
    """Share of the clips with a window of which at least 80 % are."""
    longest_run_s: float
    """Longest run of tokens that is in the training set."""
    num_unsearchable: int
    """Clips of steady tokens that half the training set has; they cannot be told apart."""


@dataclass(frozen=True)
class Flagged:
    """A generated clip that is nearer to a training clip than real audio is."""

    index: int
    name: str
    statistic: str
    value: float
    threshold: float
    training_clip: str
    training_index: int
    query_s: float
    clip_s: float
    duration_s: float


@dataclass(frozen=True)
class CopyScores:
    """What the search found; what `scores.json` holds."""

    num_generated: int
    num_flagged: int
    """Clips flagged by any statistic."""
    statistics: list[Statistic]
    flagged: list[Flagged]
    """Most remarkable first: by how far the value is above its threshold."""
    tokens: TokenCounts | None
    held_out_tokens: TokenCounts | None
    num_training: int
    """Training clips, all of whose tokens were compared."""
    num_heard: int
    """Training clips whose sound was compared."""
    notes: list[str]

    @property
    def calibrated(self) -> bool:
        """Whether there were held-out clips enough to flag anything."""
        return any(statistic.threshold is not None for statistic in self.statistics)


def threshold_of(held_out: Sequence[float]) -> float | None:
    """The 99th percentile of the statistic of held-out clips; None if there are too few of them.

    The next larger value that occurred, never one between: with fewer than 100 clips it is the largest.
    """
    if len(held_out) < MIN_HELD_OUT:
        return None
    return float(np.quantile(np.asarray(held_out), LEVEL, method="higher"))


def find_copies(generated: Queries, held_out: Queries, training: Training, folder: Path) -> CopyScores:
    """Search the sources of `generated` in `training`, calibrated on `held_out`.

    `folder` holds the token index while it is needed. The token statistic is left out, and a note says so,
    where there are no tokens or more than `MAX_FRAME_RATE` a second. Raises `UserError` if nothing was
    generated.
    """
    if not generated.names:
        raise UserError("there are no generated clips to look for copies among: none could be read")
    notes: list[str] = []
    matches: dict[str, tuple[list[Match], list[Match]]] = {}
    tokens, held_out_tokens = None, None
    if training.codes is None or generated.codes is None or held_out.codes is None:
        notes.append("No tokens were compared: there are none.")
    elif training.frame_rate > MAX_FRAME_RATE:
        notes.append(
            f"No tokens were compared: {training.frame_rate:g} a second are hardly more than samples."
        )
    else:
        found, reference = _match_tokens(generated, held_out, training, folder / "token_index")
        tokens = _count(found, training.frame_rate)
        held_out_tokens = _count(reference, training.frame_rate) if reference else None
        matches["tokens"] = (_from_tokens(found, training), _from_tokens(reference, training))
    sound, num_heard = _match_sound(generated, held_out, training)
    matches["sound"] = sound
    if num_heard < len(training.names):
        notes.append(f"The sound of {num_heard} of {len(training.names)} training clips was compared.")
    statistics = [_calibrate(name, *both) for name, both in matches.items()]
    if any(statistic.threshold is None for statistic in statistics):
        notes.append(f"Nothing is flagged by a statistic with fewer than {MIN_HELD_OUT} held-out clips.")
    flagged = _flag(statistics, {name: both[0] for name, both in matches.items()}, generated, training)
    return CopyScores(
        num_generated=len(generated.names),
        num_flagged=len({item.index for item in flagged}),
        statistics=statistics,
        flagged=flagged,
        tokens=tokens,
        held_out_tokens=held_out_tokens,
        num_training=len(training.names),
        num_heard=num_heard,
        notes=notes,
    )


def _match_tokens(
    generated: Queries, held_out: Queries, training: Training, folder: Path
) -> tuple[list[TokenMatch], list[TokenMatch]]:
    codes = training.codes
    assert codes is not None
    index = build_token_index(folder, (codes(clip) for clip in track(range(len(training.names)), "tokens")))
    window = index.window_frames(training.frame_rate)

    def search(queries: Queries) -> list[TokenMatch]:
        assert queries.codes is not None
        own = queries.own or [None] * len(queries.codes)
        return [index.search(item, window, skip) for item, skip in zip(queries.codes, own, strict=True)]

    return search(generated), search(held_out)


def _from_tokens(found: Sequence[TokenMatch], training: Training) -> list[Match]:
    rate = training.frame_rate
    return [
        Match(item.share, item.clip, item.query_frame / rate, item.clip_frame / rate, item.num_frames / rate)
        for item in found
    ]


def _count(found: Sequence[TokenMatch], frame_rate: float) -> TokenCounts:
    return TokenCounts(
        window_s=max(item.num_frames for item in found) / frame_rate,
        exact_share=float(np.mean([item.is_exact for item in found])),
        partial_share=float(np.mean([item.is_partial for item in found])),
        longest_run_s=max(item.longest_run for item in found) / frame_rate,
        num_unsearchable=sum(not item.searchable for item in found),
    )


def _match_sound(
    generated: Queries, held_out: Queries, training: Training
) -> tuple[tuple[list[Match], list[Match]], int]:
    """Matches of both sets by sound, and the number of training clips that could be read."""
    embedding = StrongMel(best_device())
    audio = [*generated.audio, *held_out.audio]
    own = [*(generated.own or [None] * len(generated.audio)), *(held_out.own or [None] * len(held_out.audio))]
    rate = training.sample_rate
    cut = [(query, piece) for query in range(len(audio)) for piece in _pieces(audio[query], rate)]
    search = NeighbourSearch(
        _embed(embedding, [piece for _, piece in cut], rate),
        embedding.info.hop_s,
        [own[query] for query, _ in cut],
    )
    num_heard = 0
    for clip in track(training.heard, "sound"):
        try:
            samples = training.audio(clip)
        except AudioError:
            continue  # counted: the report tells how many were heard
        pieces = _training_pieces(samples, rate)
        for piece, frames in zip(pieces, _embed(embedding, pieces, rate), strict=True):
            search.add(clip, frames, piece.start_s)
        num_heard += 1
    matches = [Match(-1.0, None, 0.0, 0.0, WINDOW_S)] * len(audio)
    for (query, piece), found in zip(cut, search.window_neighbours(), strict=True):
        match = Match(found.cosine, found.clip, piece.start_s + found.query_s, found.clip_s, WINDOW_S)
        matches[query] = max(matches[query], match, key=lambda item: item.value)
    split = len(generated.audio)
    return (matches[:split], matches[split:]), num_heard


@dataclass(frozen=True)
class _Piece:
    start_s: float
    samples: np.ndarray  # [C, n]


def _pieces(samples: np.ndarray, sample_rate: int) -> list[_Piece]:
    """Pieces of two windows that overlap by half, the last moved back; a shorter clip is one.

    Every window lies in one of them. Each is brought to one loudness alone: a copy of a quiet passage is not
    as loud as the piece of music that it comes from.
    """
    length = round(2 * WINDOW_S * sample_rate)
    last = max(0, samples.shape[1] - length)
    starts = sorted({*range(0, last + 1, length // 2), last})
    return [_Piece(start / sample_rate, samples[:, start : start + length]) for start in starts]


def _training_pieces(samples: np.ndarray, sample_rate: int) -> list[_Piece]:
    """The same, of a clip filled up with silence to a window's length: so may a model end a copied note."""
    # The last frame of a window reaches beyond its hop.
    short = max(0, round((WINDOW_S + FFT / SAMPLE_RATE) * sample_rate) - samples.shape[1])
    return _pieces(np.pad(samples, ((0, 0), (0, short))), sample_rate)


def _embed(embedding: Embedding, pieces: Sequence[_Piece], sample_rate: int) -> list[np.ndarray]:
    return embed_clips(embedding, [level(piece.samples, sample_rate) for piece in pieces], sample_rate)


NOTES = {
    "tokens": "Largest share of equal tokens of the first codebook in 5 s, over all training tokens.",
    "sound": "Largest likeness (cosine) of the spectrograms of 3 s to any 3 s of the training audio.",
}


def _spread(matches: Sequence[Match]) -> Spread:
    values = np.array([item.value for item in matches])
    return Spread(len(values), float(np.median(values)), float(np.quantile(values, 0.9)), float(values.max()))


def _calibrate(name: str, generated: Sequence[Match], held_out: Sequence[Match]) -> Statistic:
    threshold = threshold_of([item.value for item in held_out])
    return Statistic(
        name=name,
        note=NOTES[name],
        generated=_spread(generated),
        held_out=_spread(held_out) if held_out else None,
        threshold=threshold,
        flagged_share=(
            None if threshold is None else float(np.mean([item.value > threshold for item in generated]))
        ),
    )


def _flag(
    statistics: Sequence[Statistic],
    matches: Mapping[str, Sequence[Match]],
    generated: Queries,
    training: Training,
) -> list[Flagged]:
    flagged = [
        Flagged(
            index=index,
            name=generated.names[index],
            statistic=statistic.name,
            value=match.value,
            threshold=statistic.threshold,
            training_clip=training.names[match.clip],
            training_index=match.clip,
            query_s=match.query_s,
            clip_s=match.clip_s,
            duration_s=match.duration_s,
        )
        for statistic in statistics
        for index, match in enumerate(matches[statistic.name])
        if statistic.threshold is not None and match.clip is not None and match.value > statistic.threshold
    ]
    return sorted(flagged, key=lambda item: (item.threshold - item.value, item.name))
