"""Is one system better than another, or were its clips luckier?

For the Fréchet distances and KAD the clips are resampled (bootstrap); for scores that are a share, a mean or
a median over clips, clips change places between the systems (permutation). Where both systems have clips of
the same names, each of them made for one prompt, names are drawn, and clips change places with their
namesakes: what a prompt is worth to both drops out. The p-values of all pairs of systems are corrected for
their number after Holm (Scand. J. Stat. 6, 1979), for each embedding and score by itself.

Shapes: N clips, G groups of clips, W resamples.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .bootstrap import draw_counts, group_clips
from .frechet_groups import GroupedMoments, fitting_groups
from .gaussian_stats import GaussianStats
from .kernel_distance import kernel_sums, median_distance
from .manifold import Overlap, overlap
from .metrics import MAX_PAIR_FRAMES, WIDE

LEVEL = 0.05
MIN_RESAMPLES, RESAMPLES_PER_PAIR = 500, 80
"""Resamples: enough for Holm's smallest p-value of all pairs to be half the level."""
NUM_RESAMPLES_WIDE = 100
FRECHET = ("fad", "fad-inf")
MANIFOLD = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class ClipFrames:
    """The clips of a system."""

    names: Sequence[str]
    frames: Sequence[np.ndarray]  # each [T, D]


@dataclass(frozen=True)
class Difference:
    """How two systems compare in one score."""

    metric: str
    first: str
    second: str
    difference: float
    """The first one's value less the second one's."""
    p: float
    """Probability of a difference at least as large between systems that are equally good."""
    p_holm: float
    """The same, corrected for the number of pairs."""
    is_significant: bool
    test: str
    """`bootstrap` or `permutation`, and whether clips were paired by name."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value corrected for their number: Holm 1979, the step-down of Bonferroni's."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def differences(
    systems: Mapping[str, ClipFrames],
    values: Mapping[str, Mapping[str, float | None]],
    reference: GaussianStats,
    reference_frames: np.ndarray | None,
    per_clip: Mapping[str, Mapping[str, Sequence[float]]],
    seed: int,
) -> list[Difference]:
    """Every pair of systems in every score that both have a value of.

    Args:
        systems: the clips of each.
        values: the value of each score of each system.
        reference: its statistics.
        reference_frames: frames [m, D] of the reference; None where there are statistics alone.
        per_clip: by system and score, the value of each clip by itself, NaN where it has none; scores that
            are neither among these nor distances of clouds have no test.
        seed: of the resamples.
    """
    pairs = list(itertools.combinations(systems, 2))
    found = []
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    resamples = _Resamples(systems, reference, reference_frames, per_clip, seed, len(pairs))
    for name in names:
        rows = []
        for first, second in pairs:
            ours, theirs = values[first].get(name), values[second].get(name)
            if ours is None or theirs is None:
                continue
            tested = resamples.p_value(name, first, second, ours - theirs)
            if tested is not None:
                rows.append(Difference(name, first, second, ours - theirs, tested[0], 1.0, False, tested[1]))
        for row, corrected in zip(rows, holm([row.p for row in rows]), strict=True):
            found.append(replace(row, p_holm=corrected, is_significant=corrected < LEVEL))
    return found


def are_paired(first: ClipFrames, second: ClipFrames) -> bool:
    """Whether both have clips of the same names, in the same order."""
    return list(first.names) == list(second.names)


class _Resamples:
    """The scores of resamples of each system, computed when first asked for."""

    def __init__(
        self,
        systems: Mapping[str, ClipFrames],
        reference: GaussianStats,
        reference_frames: np.ndarray | None,
        per_clip: Mapping[str, Mapping[str, Sequence[float]]],
        seed: int,
        num_pairs: int,
    ) -> None:
        self._seed = seed
        self._systems = systems
        self._reference = reference
        self._reference_frames = None
        if reference_frames is not None:
            self._reference_frames = reference_frames[self._chosen(len(reference_frames))].astype(np.float64)
        self._per_clip = per_clip
        self._num = max(MIN_RESAMPLES, RESAMPLES_PER_PAIR * num_pairs)
        self._drawn: dict[tuple[str, str, int], np.ndarray] = {}
        self._overlaps: dict[str, Overlap] = {}

    def p_value(self, name: str, first: str, second: str, difference: float) -> tuple[float, str] | None:
        """Two-sided p-value of a difference in the score `name`, and the test; None where there is none."""
        if min(len(self._systems[system].frames) for system in (first, second)) < 2:
            return None
        paired = are_paired(self._systems[first], self._systems[second])
        how = ", clips paired by name" if paired else ""
        if name in FRECHET or name == "kad":
            kind = "kad" if name == "kad" else "fad"
            # Other resamples for the second one, unless its clips belong to the first one's.
            drawn = self._bootstrap(kind, first, 0) - self._bootstrap(kind, second, 0 if paired else 1)
            return _tail(drawn - drawn.mean(), difference), f"bootstrap{how}"
        if name in MANIFOLD:
            return self._permute_overlap(name, first, second, difference, paired), f"permutation{how}"
        values = [np.asarray(self._per_clip[system].get(name, ())) for system in (first, second)]
        if min(map(len, values)) == 0:
            return None
        paired = paired and len(values[0]) == len(values[1])  # some clips may have no caption
        how = ", clips paired by name" if paired else ""
        return self._permute_clips(name, values, difference, paired), f"permutation{how}"

    def _bootstrap(self, kind: str, system: str, stream: int) -> np.ndarray:
        key = (kind, system, stream)
        if key not in self._drawn:
            self._drawn[key] = (self._frechet if kind == "fad" else self._kernel)(system, stream)
        return self._drawn[key]

    def _counts(self, groups: np.ndarray, stream: int, num: int) -> np.ndarray:
        return draw_counts(int(groups.max()) + 1, self._seed + stream, num)

    def _frechet(self, system: str, stream: int) -> np.ndarray:
        clips = self._systems[system].frames
        width = len(self._reference.mean)
        groups = group_clips(len(clips), self._seed, fitting_groups(100, width))
        num = self._num if width <= WIDE else NUM_RESAMPLES_WIDE
        return _spread(
            GroupedMoments(self._reference, clips, groups).distances(self._counts(groups, stream, num)),
            groups,
        )

    def _kernel(self, system: str, stream: int) -> np.ndarray:
        assert self._reference_frames is not None
        frames, groups = self._grouped(system)
        bandwidth = median_distance(self._reference_frames, self._seed)
        sums = kernel_sums(frames, self._reference_frames, groups, bandwidth)
        return _spread(sums.distances(self._counts(groups, stream, self._num)), groups)

    def _grouped(self, system: str) -> tuple[np.ndarray, np.ndarray]:
        """Frames of a system, at most `MAX_PAIR_FRAMES` random ones, and the group of each."""
        clips = self._systems[system].frames
        frames = np.concatenate(clips)
        groups = np.repeat(group_clips(len(clips), self._seed), [len(clip) for clip in clips])
        chosen = self._chosen(len(frames))
        return frames[chosen].astype(np.float64), np.unique(groups[chosen], return_inverse=True)[1]

    def _chosen(self, num_frames: int) -> np.ndarray:
        """Which frames of a set are compared pair by pair: the same as for the scores themselves."""
        if num_frames <= MAX_PAIR_FRAMES:
            return np.arange(num_frames)
        drawn = np.random.default_rng(self._seed).choice(num_frames, MAX_PAIR_FRAMES, replace=False)
        chosen: np.ndarray = np.sort(drawn)
        return chosen

    def _overlap_of(self, system: str) -> Overlap:
        assert self._reference_frames is not None
        if system not in self._overlaps:
            frames, groups = self._grouped(system)
            self._overlaps[system] = overlap(frames, self._reference_frames, groups)
        return self._overlaps[system]

    def _permute_overlap(self, name: str, first: str, second: str, difference: float, paired: bool) -> float:
        """Groups of clips change places; the balls around the generated frames stay as they were."""
        a, b = self._overlap_of(first), self._overlap_of(second)
        both = Overlap(
            num=np.concatenate([a.num, b.num]),
            inside=np.concatenate([a.inside, b.inside]),
            balls=np.concatenate([a.balls, b.balls]),
            recalled=np.concatenate([a.recalled, b.recalled], axis=1),
            covered=np.concatenate([a.covered, b.covered], axis=1),
        )
        assigned = _assignments(len(a.num), len(b.num), paired, self._seed, self._num)
        ours, theirs = both.scores(assigned), both.scores(1.0 - assigned)
        swapped = [getattr(x, name) - getattr(y, name) for x, y in zip(ours, theirs, strict=True)]
        return _tail(np.array(swapped), difference)

    def _permute_clips(
        self, name: str, clips: Sequence[np.ndarray], difference: float, paired: bool
    ) -> float:
        values = np.concatenate(clips)
        assigned = _assignments(len(clips[0]), len(clips[1]), paired, self._seed, self._num)
        average = np.nanmedian if name == "per-song" else np.nanmean
        ours = average(np.where(assigned == 1.0, values, np.nan), axis=1)
        theirs = average(np.where(assigned == 0.0, values, np.nan), axis=1)
        return _tail(ours - theirs, difference)


def _assignments(num_first: int, num_second: int, paired: bool, seed: int, num: int) -> np.ndarray:
    """Which of G₁ + G₂ groups are the first system's, [W, G₁ + G₂] of 0 and 1."""
    rng = np.random.default_rng([seed, 2])
    if paired and num_first == num_second:
        own = rng.integers(0, 2, (num, num_first))
        return np.concatenate([own, 1 - own], axis=1).astype(np.float64)
    assigned = np.tile(np.repeat([1.0, 0.0], [num_first, num_second]), (num, 1))
    shuffled: np.ndarray = rng.permuted(assigned, axis=1)
    return shuffled


def _spread(resampled: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Deviations of `resampled` scores, with the spread of as many independent groups."""
    num_groups = int(groups.max()) + 1
    deviations: np.ndarray = (resampled - resampled.mean()) * np.sqrt(num_groups / (num_groups - 1))
    return deviations


def _tail(chance: np.ndarray, difference: float) -> float:
    """Share of the differences by chance that are as large as `difference`, which counts as one of them."""
    as_large = np.abs(chance) >= abs(difference) * (1.0 - 1e-12)
    return float((1 + np.count_nonzero(as_large)) / (1 + len(chance)))
