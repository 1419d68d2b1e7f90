"""Kernel audio distance (KAD): the maximum mean discrepancy between two sets of embeddings.

Chung et al., arXiv:2502.15602. Unlike the Fréchet distance it takes no set for Gaussian, and its expectation
does not depend on the sizes of the sets: where both come from one distribution it is 0 on average, and so
negative half of the time.

Shapes: n frames of the generated set, m of the reference, d their width, G groups of clips, W resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .pairwise import distance_blocks

SCALE = 100.0
"""What the authors' kadtk multiplies the squared discrepancy by."""
MAX_BANDWIDTH_FRAMES = 2048
"""Frames of the reference whose distances the bandwidth is the median of; of larger sets, random ones."""


def median_distance(reference: np.ndarray, seed: int) -> float:
    """The bandwidth: the median of the distances between the frames of `reference` [m, d].

    That of the reference alone, as in kadtk, so that all systems are measured by one kernel.
    Raises `ValueError` for fewer than two frames, or where more than half of the distances are zero.
    """
    if len(reference) < 2:
        raise ValueError(f"a bandwidth needs at least 2 reference frames, there are {len(reference)}")
    if len(reference) > MAX_BANDWIDTH_FRAMES:
        chosen = np.random.default_rng(seed).choice(len(reference), MAX_BANDWIDTH_FRAMES, replace=False)
        reference = reference[np.sort(chosen)]
    distances = torch.pdist(torch.from_numpy(np.ascontiguousarray(reference, dtype=np.float64)))
    median = float(np.median(distances.numpy()))
    if median == 0.0:
        raise ValueError("most frames of the reference are equal, so that it has no bandwidth")
    return median


@dataclass(frozen=True, eq=False)
class KernelSums:
    """Sums of the kernel k(x, y) = exp(−‖x − y‖² / 2σ²), from which distances of any resample follow."""

    bandwidth: float
    num: np.ndarray  # [G] generated frames
    within: np.ndarray  # [G, G] over the pairs of different generated frames
    across: np.ndarray  # [G] over the pairs of a generated frame and one of the reference
    num_reference: int
    reference: float
    """Over the pairs of different frames of the reference."""

    def distances(self, weights: np.ndarray) -> np.ndarray:
        """KAD [W] of sets that hold each group `weights` [W, G] times.

        The unbiased estimate of Gretton et al. 2012, lemma 6, times `SCALE`. A frame that a resample holds
        twice makes no pair with itself.
        """
        num = weights @ self.num
        pairs = num**2 - np.square(weights) @ self.num
        within = np.einsum("wg,gh,wh->w", weights, self.within, weights) / pairs
        across = weights @ self.across / (num * self.num_reference)
        between = self.reference / (self.num_reference * (self.num_reference - 1))
        distances: np.ndarray = SCALE * (within + between - 2.0 * across)
        return distances

    def distance(self) -> float:
        """KAD of the whole set."""
        return float(self.distances(np.ones((1, len(self.num))))[0])


def kernel_sums(
    generated: np.ndarray, reference: np.ndarray, groups: np.ndarray, bandwidth: float
) -> KernelSums:
    """Sum up the kernel over `generated` [n, d] and `reference` [m, d]; `groups` [n] is each frame's group.

    In blocks: memory does not grow with n and m, time with (n + m)². Raises `ValueError` if the widths differ
    or either set has fewer than two frames.
    """
    for name, frames in (("generated", generated), ("reference", reference)):
        if len(frames) < 2:
            raise ValueError(f"KAD needs at least 2 frames in each set, the {name} set has {len(frames)}")
    num_groups = int(groups.max()) + 1
    member = torch.from_numpy(np.eye(num_groups)[groups])  # [n, G]
    within = torch.zeros(num_groups, num_groups, dtype=torch.float64)
    across = torch.zeros(num_groups, dtype=torch.float64)
    gamma = 0.5 / bandwidth**2
    for block in distance_blocks(generated, generated):
        kernel = torch.exp(-gamma * block.squared)
        if block.rows == block.columns:
            kernel.fill_diagonal_(0.0)
        within += member[block.rows].mT @ kernel @ member[block.columns]
    for block in distance_blocks(generated, reference):
        across += member[block.rows].mT @ torch.exp(-gamma * block.squared).sum(dim=1)
    return KernelSums(
        bandwidth=bandwidth,
        num=np.bincount(groups, minlength=num_groups).astype(np.float64),
        within=within.numpy(),
        across=across.numpy(),
        num_reference=len(reference),
        reference=_sum_over_pairs(reference, gamma),
    )


def _sum_over_pairs(frames: np.ndarray, gamma: float) -> float:
    total = 0.0
    for block in distance_blocks(frames, frames):
        if block.rows.start > block.columns.start:
            continue  # its mirror image counts twice
        kernel = torch.exp(-gamma * block.squared)
        if block.rows == block.columns:
            kernel.fill_diagonal_(0.0)
            total += float(kernel.sum())
        else:
            total += 2.0 * float(kernel.sum())
    return total


def kernel_distance(generated: np.ndarray, reference: np.ndarray, bandwidth: float) -> float:
    """KAD of `generated` [n, d] to `reference` [m, d]; raises what `kernel_sums` raises."""
    return kernel_sums(generated, reference, np.zeros(len(generated), dtype=int), bandwidth).distance()
