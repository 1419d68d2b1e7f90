"""How far a growing network has grown, from the number of clips that it has seen."""

from __future__ import annotations


# arXiv:1710.10196, app. A.1: the lowest resolution is trained for a phase; each further one fades in for a
# phase and is trained for another.
def level_of(images_seen: int, num_levels: int, images_per_phase: int) -> float:
    """The level from 0 to `num_levels - 1` after `images_seen` real clips, as `family.Generator` has it.

    A function of nothing else: a run that is taken up in the middle of a fade goes on as it would have.
    """
    assert images_seen >= 0
    phase, seen = divmod(images_seen, images_per_phase)
    level = phase / 2 if phase % 2 == 0 else phase // 2 + seen / images_per_phase
    return float(min(level, num_levels - 1))
