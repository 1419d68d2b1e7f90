"""Statistics of codec tokens, codebook by codebook, against those of a reference.

What a model gets wrong in its own terms, before any decoder: a codebook that has collapsed, or transitions
that do not occur. Equal statistics say nothing about what the tokens sound like.

Shapes: K codebooks, T frames, V codebook size, G groups of clips, U different symbols, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import Interval, centred_interval, draw_counts, group_clips
from .measured import Score

MAX_TOKEN_GROUPS = 50


@dataclass(frozen=True, eq=False)
class _Counts:
    """How often each symbol that occurs at all does so, in groups of generated clips and in the reference."""

    generated: np.ndarray  # [G, U]
    reference: np.ndarray  # [U]
    half: np.ndarray  # [U]: in every second clip of the reference

    def distances(self, weights: np.ndarray) -> np.ndarray:
        """Total variation distances [B] to the reference, of sets with the groups `weights` [B, G] times."""
        return _total_variation(weights @ self.generated, self.reference)

    def entropies(self, weights: np.ndarray) -> np.ndarray:
        """Entropies [B] of the same sets, in bits."""
        return _entropy(weights @ self.generated)


def token_statistics(
    generated: Sequence[np.ndarray], reference: Sequence[np.ndarray], codebook_size: int, *, seed: int
) -> list[Score]:
    """Compare the codes [K, T_i] of generated clips with those of reference clips. Three scores:

    - `token-entropy-gap`: |H_generated − H_reference| of the codebooks' entries, in bits;
    - `unigram-distance`: total variation distance of how often entries occur;
    - `bigram-distance`: the same of pairs of entries in adjacent frames.

    The value is the mean over codebooks, each of which is in `detail`. A total variation distance runs from
    0 to 1 and is biased upwards in small sets, strongly so for pairs: `halves of the reference` is what two
    halves of the reference are apart, smaller than either set as they are. Raises `ValueError` for codes of
    other shapes, out of range, or too few: each set needs two clips, one of them with two frames.
    """
    num_codebooks = _check(generated, reference, codebook_size)
    groups = group_clips(len(generated), seed, MAX_TOKEN_GROUPS)
    num_groups = int(groups.max()) + 1
    everything, weights = np.ones((1, num_groups)), draw_counts(num_groups, seed)
    detail: dict[str, list[list[float]]] = {"unigram": [], "bigram": [], "entropy": []}
    resampled: dict[str, list[np.ndarray]] = {"unigram": [], "bigram": [], "entropy": []}
    for codebook in range(num_codebooks):
        for name, order in (("unigram", 1), ("bigram", 2)):
            counts = _count(generated, reference, groups, codebook, order, codebook_size)
            floor = float(_total_variation(counts.half[None], counts.reference - counts.half)[0])
            detail[name].append([float(counts.distances(everything)[0]), floor])
            resampled[name].append(counts.distances(weights))
            if order == 1:
                of_reference = float(_entropy(counts.reference[None])[0])
                detail["entropy"].append([float(counts.entropies(everything)[0]), of_reference])
                resampled["entropy"].append(np.abs(counts.entropies(weights) - of_reference))

    def interval(name: str, value: float, highest: float) -> Interval | None:
        means = np.mean(resampled[name], axis=0)
        return centred_interval(value, means, num_groups, lowest=0.0, highest=highest)

    ours, theirs = (list(column) for column in zip(*detail["entropy"], strict=True))
    gap = float(np.mean(np.abs(np.subtract(ours, theirs))))
    scores = [
        Score(
            name="token-entropy-gap",
            value=gap,
            interval=interval("entropy", gap, np.log2(codebook_size)),
            better="lower",
            detail={"generated (bits)": ours, "reference (bits)": theirs},
        )
    ]
    for name in ("unigram", "bigram"):
        distances, floors = (list(column) for column in zip(*detail[name], strict=True))
        value = float(np.mean(distances))
        scores.append(
            Score(
                name=f"{name}-distance",
                value=value,
                interval=interval(name, value, 1.0),
                better="lower",
                detail={"codebooks": distances, "halves of the reference": floors},
            )
        )
    return scores


def _check(generated: Sequence[np.ndarray], reference: Sequence[np.ndarray], codebook_size: int) -> int:
    """The number of codebooks; raises `ValueError` for what `token_statistics` cannot compare."""
    for what, clips in (("generated", generated), ("reference", reference)):
        if len(clips) < 2 or max(clip.shape[-1] for clip in clips) < 2:
            raise ValueError(f"token statistics need at least 2 {what} clips, one of at least 2 frames")
        for index, clip in enumerate(clips):
            if clip.ndim != 2 or len(clip) != len(reference[0]):
                raise ValueError(
                    f"clip {index} of the {what} set has codes of the shape {list(clip.shape)},"
                    f" not [{len(reference[0])} codebooks, frames]"
                )
            if clip.size and (clip.min() < 0 or clip.max() >= codebook_size):
                raise ValueError(
                    f"clip {index} of the {what} set has codes from {clip.min()} to {clip.max()},"
                    f" and the codebooks have {codebook_size} entries"
                )
    return len(reference[0])


def _symbols(clip: np.ndarray, codebook: int, order: int, codebook_size: int) -> np.ndarray:
    """The entries of one codebook of `clip` [K, T], or each with the one after it, as one number."""
    entries: np.ndarray = clip[codebook].astype(np.int64)
    pairs: np.ndarray = entries[:-1] * codebook_size + entries[1:]
    return entries if order == 1 else pairs


def _count(
    generated: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    groups: np.ndarray,
    codebook: int,
    order: int,
    codebook_size: int,
) -> _Counts:
    ours = [_symbols(clip, codebook, order, codebook_size) for clip in generated]
    theirs = [_symbols(clip, codebook, order, codebook_size) for clip in reference]
    every, indices = np.unique(np.concatenate([*ours, *theirs]), return_inverse=True)
    pieces = np.split(indices, np.cumsum([len(clip) for clip in [*ours, *theirs]])[:-1])
    by_group = np.zeros((int(groups.max()) + 1, len(every)))
    for group, piece in zip(groups, pieces[: len(ours)], strict=True):
        by_group[group] += np.bincount(piece, minlength=len(every))
    in_reference = np.array(
        [np.bincount(np.concatenate(pieces[len(ours) + k :: 2]), minlength=len(every)) for k in (0, 1)]
    )
    return _Counts(by_group, in_reference.sum(axis=0).astype(np.float64), in_reference[0].astype(np.float64))


def _total_variation(counts: np.ndarray, other: np.ndarray) -> np.ndarray:
    """½ Σ |p − q| [B] of `counts` [B, U] and `other` [U]; 1 where nothing was counted in the former."""
    p = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    q = other / max(other.sum(), 1.0)
    distance: np.ndarray = np.minimum(np.abs(p - q).sum(axis=1) / 2.0, 1.0)
    empty = counts.sum(axis=1) == 0.0
    return np.where(empty & (other.sum() > 0.0), 1.0, distance)


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy [B] of `counts` [B, U] in bits."""
    p = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    entropy: np.ndarray = -np.sum(p * np.log2(np.where(p > 0.0, p, 1.0)), axis=1)
    return entropy
