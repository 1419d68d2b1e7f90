"""Precision, recall, density and coverage: are the clips like real ones, and are all kinds of them there?

A set stands for the region that is the union of the balls around its frames, each as large as the distance to
the frame's k-th nearest neighbour in the set. Precision and recall: Kynkäänniemi et al., arXiv:1904.06991;
density and coverage: Naeem et al., arXiv:2002.09797.

Shapes: n frames of the generated set, m of the reference, d their width, G groups of clips, W resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .pairwise import distance_blocks

NUM_NEIGHBOURS = 5


@dataclass(frozen=True)
class Manifold:
    """The four scores; the larger the better."""

    precision: float
    """Share of the generated frames in the region of the reference."""
    recall: float
    """Share of the reference frames in the region of the generated set."""
    density: float
    """Mean number of the reference's balls that a generated frame is in, over k: may exceed 1."""
    coverage: float
    """Share of the reference's balls that hold a generated frame."""


@dataclass(frozen=True, eq=False)
class Overlap:
    """What is in whose region, by groups of generated clips."""

    num: np.ndarray  # [G] generated frames
    inside: np.ndarray  # [G] of them in the reference's region
    balls: np.ndarray  # [G] sum over the frames of the reference's balls that each is in, over k
    recalled: np.ndarray  # [m, G] whether a frame of the reference is in a ball of the group
    covered: np.ndarray  # [m, G] whether its ball holds a frame of the group

    def scores(self, weights: np.ndarray) -> list[Manifold]:
        """The scores of sets that hold each group `weights` [W, G] times, with the balls of the whole set."""
        num = weights @ self.num
        present = (weights > 0).astype(np.float32).T
        recall = (self.recalled.astype(np.float32) @ present > 0).mean(axis=0)
        coverage = (self.covered.astype(np.float32) @ present > 0).mean(axis=0)
        columns = (weights @ self.inside / num, recall, weights @ self.balls / num, coverage)
        return [Manifold(*map(float, row)) for row in zip(*columns, strict=True)]


def neighbour_radii(frames: np.ndarray, num_neighbours: int = NUM_NEIGHBOURS) -> np.ndarray:
    """Squared distance [n] of each of `frames` [n, d] to its k-th nearest among the others.

    Raises `ValueError` if there are not more than k frames.
    """
    if len(frames) <= num_neighbours:
        raise ValueError(
            f"precision, recall, density and coverage need more than {num_neighbours} frames in each set,"
            f" and one has {len(frames)}"
        )
    nearest = torch.full((len(frames), num_neighbours), torch.inf, dtype=torch.float64)
    for block in distance_blocks(frames, frames):
        squared = block.squared
        if block.rows == block.columns:
            squared.fill_diagonal_(torch.inf)  # no frame is its own neighbour
        both = torch.cat([nearest[block.rows], squared], dim=1)
        nearest[block.rows] = both.topk(num_neighbours, dim=1, largest=False).values
    radii: np.ndarray = nearest.amax(dim=1).numpy()
    return radii


def overlap(
    generated: np.ndarray,
    reference: np.ndarray,
    groups: np.ndarray,
    num_neighbours: int = NUM_NEIGHBOURS,
) -> Overlap:
    """Compare `generated` [n, d] with `reference` [m, d]; `groups` [n] is each generated frame's group.

    A frame on the surface of a ball, within rounding, is in it: an exact copy is in the ball of its original
    also where that has radius 0. Raises `ValueError` if the widths differ or a set is too small.
    """
    reference_radii = torch.from_numpy(neighbour_radii(reference, num_neighbours))
    generated_radii = torch.from_numpy(neighbour_radii(generated, num_neighbours))
    num_groups = int(groups.max()) + 1
    member = torch.from_numpy(np.eye(num_groups, dtype=np.float32)[groups])  # [n, G]
    balls = torch.zeros(len(generated), dtype=torch.float64)
    recalled = torch.zeros(len(reference), num_groups, dtype=torch.bool)
    covered = torch.zeros(len(reference), num_groups, dtype=torch.bool)
    for block in distance_blocks(reference, generated):
        squared = block.squared - block.rounding
        in_reference = squared <= reference_radii[block.rows, None]
        in_generated = squared <= generated_radii[None, block.columns]
        balls[block.columns] += in_reference.sum(dim=0)
        covered[block.rows] |= in_reference.float() @ member[block.columns] > 0
        recalled[block.rows] |= in_generated.float() @ member[block.columns] > 0
    return Overlap(
        num=np.bincount(groups, minlength=num_groups).astype(np.float64),
        inside=np.bincount(groups, (balls > 0).numpy(), num_groups),
        balls=np.bincount(groups, balls.numpy() / num_neighbours, num_groups),
        recalled=recalled.numpy(),
        covered=covered.numpy(),
    )


def manifold_scores(
    generated: np.ndarray, reference: np.ndarray, num_neighbours: int = NUM_NEIGHBOURS
) -> Manifold:
    """The four scores of `generated` [n, d] against `reference` [m, d]; raises what `overlap` raises."""
    groups = np.zeros(len(generated), dtype=int)
    return overlap(generated, reference, groups, num_neighbours).scores(np.ones((1, 1)))[0]
