"""Every score of embeddings by name, in one form.

`METRICS[name](generated, reference, seed)` takes the embeddings [T_i, D] of each generated clip, those of
each reference clip or statistics of them, and gives a `Score`. What cannot be measured has no value and a
note that says why. `measure` gives several and computes what they share once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np

from .bootstrap import MAX_GROUPS, NUM_RESAMPLES, Interval, centred_interval, draw_counts, group_clips
from .frechet import frechet_distance, frechet_distance_infinity, frechet_distance_per_clip
from .frechet_groups import GroupedMoments, fitting_groups
from .gaussian_stats import GaussianStats
from .kernel_distance import kernel_sums, median_distance
from .manifold import NUM_NEIGHBOURS, Manifold, Overlap, overlap
from .measured import BETTER, Detail, Score, no_score, single
from .pairwise import as_frames

__all__ = ["METRICS", "Comparison", "Reference", "Score", "measure"]

Reference = GaussianStats | Sequence[np.ndarray]
"""Statistics, or the embeddings [T_i, D] of each clip: KAD, precision, recall … need the latter."""

WIDE = 1024
NUM_RESAMPLES_WIDE = 50
"""Resamples of a Fréchet distance in more than `WIDE` dimensions, where each takes a second."""
MAX_PAIR_FRAMES = 16384
"""Frames of each set that KAD, precision, recall … compare pair by pair; of larger sets, random ones."""


HIGHEST = {"precision": 1.0, "recall": 1.0, "density": np.inf, "coverage": 1.0}


class Comparison:
    """Generated clips beside a reference; what several scores need is computed once."""

    def __init__(self, generated: Sequence[np.ndarray], reference: Reference, seed: int) -> None:
        """`generated` are embeddings [T_i, D]; `seed` is that of resamples, subsets and bandwidth."""
        self._generated = generated
        self._reference = reference
        self._seed = seed

    def score(self, name: str) -> Score:
        """The score called `name`, one of `METRICS`; without a value where the sets do not allow it."""
        measures = {
            "fad": self.fad,
            "fad-inf": self.fad_infinity,
            "per-song": self.fad_per_song,
            "kad": self.kad,
        }
        try:
            as_frames(self._generated, "generated")
            return measures[name]() if name in measures else self.manifold(name)
        except ValueError as error:
            return no_score(name, str(error))

    def fad(self) -> Score:
        """Fréchet distance; raises `ValueError` for a set with fewer than two frames."""
        value = frechet_distance(self._stats, self._reference_stats)
        detail = {"frames": float(self._stats.num), "resamples": float(len(self._frechet_resamples))}
        interval = self._frechet_interval(value, lowest=0.0)
        return Score("fad", value, interval, BETTER["fad"], detail, self._small_sets())

    def fad_infinity(self) -> Score:
        """Fréchet distance extrapolated to infinitely many clips; raises `ValueError` for too few.

        Its interval is as wide as that of the distance itself: see `docs/scores.md`.
        """
        line = frechet_distance_infinity(self._reference_stats, self._generated, seed=self._seed)
        detail: dict[str, Detail] = {
            "slope": line.slope,
            "r2": line.r2,
            "sizes": line.sizes,
            "distances": line.distances,
        }
        interval = self._frechet_interval(line.value, lowest=-np.inf)
        return Score("fad-inf", line.value, interval, BETTER["fad-inf"], detail, self._small_sets())

    def fad_per_song(self) -> Score:
        """Median of the Fréchet distances of single clips, each of which is in `detail`."""
        distances = frechet_distance_per_clip(self._generated, self._reference_stats)
        known = np.array([distance for distance in distances if distance is not None])
        if not len(known):
            raise ValueError("no clip has the 2 embedding frames that its own covariance needs")
        value = float(np.median(known))
        groups = group_clips(len(known), self._seed)
        counts = self._counts(int(groups.max()) + 1)
        resampled = np.array([np.median(np.repeat(known, row[groups].astype(int))) for row in counts])
        interval = centred_interval(value, resampled, counts.shape[1], lowest=0.0)
        left_out = len(distances) - len(known)
        note = f"{left_out} of {len(distances)} clips have a single frame and no distance" if left_out else ""
        return Score("per-song", value, interval, BETTER["per-song"], {"distances": distances}, note)

    def kad(self) -> Score:
        """Kernel audio distance; raises `ValueError` for too few frames, or statistics as reference."""
        generated, reference, groups = self._pairs
        sums = kernel_sums(generated, reference, groups, median_distance(reference, self._seed))
        value = sums.distance()
        interval = centred_interval(value, sums.distances(self._counts(len(sums.num))), len(sums.num))
        detail = {"bandwidth": sums.bandwidth, **self._pair_counts()}
        return Score("kad", value, interval, BETTER["kad"], detail)

    def manifold(self, name: str) -> Score:
        """Precision, recall, density or coverage; raises `ValueError` like `kad`."""
        value = float(getattr(self._manifolds[0], name))
        resampled = np.array([getattr(resample, name) for resample in self._manifolds[1:]])
        interval = centred_interval(
            value, resampled, len(self._overlap.num), lowest=0.0, highest=HIGHEST[name]
        )
        detail = {"neighbours": float(NUM_NEIGHBOURS), **self._pair_counts()}
        return Score(name, value, interval, BETTER[name], detail)

    @cached_property
    def _frames(self) -> np.ndarray:
        return as_frames(self._generated, "generated")

    @cached_property
    def _stats(self) -> GaussianStats:
        return GaussianStats.from_embeddings(self._frames)

    @cached_property
    def _reference_stats(self) -> GaussianStats:
        if isinstance(self._reference, GaussianStats):
            return self._reference
        return GaussianStats.from_embeddings(as_frames(self._reference, "reference"))

    def _counts(self, num_groups: int, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
        """How often each group is in each resample, [B, G]; no resamples of a single group."""
        return draw_counts(num_groups, self._seed, num_resamples) if num_groups > 1 else np.zeros((0, 1))

    @cached_property
    def _frechet_groups(self) -> np.ndarray:
        rank = min(self._stats.num, self._frames.shape[1])
        return group_clips(len(self._generated), self._seed, fitting_groups(MAX_GROUPS, rank))

    @cached_property
    def _frechet_resamples(self) -> np.ndarray:
        """Fréchet distance of each resample of the clips."""
        num_groups = int(self._frechet_groups.max()) + 1
        if num_groups < 2:
            return np.zeros(0)
        wide = min(self._stats.num, self._frames.shape[1]) > WIDE
        counts = self._counts(num_groups, NUM_RESAMPLES_WIDE if wide else NUM_RESAMPLES)
        return GroupedMoments(self._reference_stats, self._generated, self._frechet_groups).distances(counts)

    def _frechet_interval(self, value: float, lowest: float) -> Interval | None:
        num_groups = int(self._frechet_groups.max()) + 1
        return centred_interval(value, self._frechet_resamples, num_groups, lowest=lowest)

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Generated and reference frames to compare pair by pair, and the group of each generated one."""
        if isinstance(self._reference, GaussianStats):
            raise ValueError(
                "statistics hold a mean and a covariance only, and this score compares with the reference's"
                " frames: give the folder of the reference"
            )
        reference = as_frames(self._reference, "reference")
        groups = np.repeat(
            group_clips(len(self._generated), self._seed), [len(clip) for clip in self._generated]
        )
        ours, theirs = self._chosen(len(self._frames)), self._chosen(len(reference))
        return self._frames[ours], reference[theirs], np.unique(groups[ours], return_inverse=True)[1]

    def _pair_counts(self) -> dict[str, float]:
        generated, reference, _ = self._pairs
        return {"generated frames": float(len(generated)), "reference frames": float(len(reference))}

    def _chosen(self, num_frames: int) -> np.ndarray:
        if num_frames <= MAX_PAIR_FRAMES:
            return np.arange(num_frames)
        rng = np.random.default_rng(self._seed)
        chosen: np.ndarray = np.sort(rng.choice(num_frames, MAX_PAIR_FRAMES, replace=False))
        return chosen

    @cached_property
    def _overlap(self) -> Overlap:
        return overlap(*self._pairs)

    @cached_property
    def _manifolds(self) -> list[Manifold]:
        """The scores of all clips, then those of each resample."""
        num_groups = len(self._overlap.num)
        weights = np.concatenate([np.ones((1, num_groups)), self._counts(num_groups)])
        return self._overlap.scores(weights)

    def _small_sets(self) -> str:
        """What is to be known of a Fréchet distance of sets of this size."""
        width = self._frames.shape[1]
        small = [
            f"{name} {stats.num}"
            for name, stats in (("generated", self._stats), ("reference", self._reference_stats))
            if stats.num < 2 * width
        ]
        if not small:
            return ""
        return f"fewer frames ({', '.join(small)}) than twice the width {width}: the value is mostly bias"


def _metric(name: str) -> Callable[[Sequence[np.ndarray], Reference, int], Score]:
    return lambda generated, reference, seed: Comparison(generated, reference, seed).score(name)


METRICS = {name: _metric(name) for name in ("fad", "fad-inf", "per-song", "kad", *HIGHEST)}


def measure(
    names: Iterable[str], generated: Sequence[np.ndarray], reference: Reference, seed: int
) -> list[Score]:
    """The scores called `names` (of `METRICS`, or `prdc`) of `generated` against `reference`, in order."""
    comparison = Comparison(generated, reference, seed)
    return [comparison.score(name) for name in single(names)]
