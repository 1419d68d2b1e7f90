"""Mean and standard deviation of latents, gathered clip by clip and merged without loss.

Shapes: D latent width, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

# Frames that are converted to float64 at once, so that a long clip is never held twice.
_BLOCK_FRAMES = 4096


@dataclass(frozen=True)
class LatentStats:
    """Statistics of some frames, each of the D dimensions alone, in float64."""

    num_frames: int
    mean: np.ndarray  # [D]
    m2: np.ndarray  # [D]
    """Sum of the squared distances from the mean."""

    @classmethod
    def none(cls, latent_dim: int) -> Self:
        """Of no frames."""
        return cls(0, np.zeros(latent_dim), np.zeros(latent_dim))

    @classmethod
    def of(cls, latents: np.ndarray) -> Self:
        """Of the frames of `latents` `[D, T]`."""
        stats = cls.none(latents.shape[0])
        for start in range(0, latents.shape[1], _BLOCK_FRAMES):
            block = latents[:, start : start + _BLOCK_FRAMES].astype(np.float64)
            mean = block.mean(axis=1)
            m2 = np.square(block - mean[:, None]).sum(axis=1)
            stats = stats.merge(cls(block.shape[1], mean, m2))
        return stats

    # Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    def merge(self, other: Self) -> Self:
        """Of the frames of both; rounding depends on the order, so a fixed order gives the same bits."""
        num_frames = self.num_frames + other.num_frames
        if not num_frames:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.num_frames / num_frames)
        m2 = self.m2 + other.m2 + np.square(delta) * (self.num_frames * other.num_frames / num_frames)
        return type(self)(num_frames, mean, m2)

    @property
    def std(self) -> np.ndarray:  # [D]
        """Standard deviation over all frames (not the sample estimate)."""
        deviation: np.ndarray = np.sqrt(self.m2 / max(1, self.num_frames))
        return deviation

    def to_json(self) -> dict[str, Any]:
        """In JSON's types; Python writes floats so that they are read back bit for bit."""
        return {"num_frames": self.num_frames, "mean": self.mean.tolist(), "m2": self.m2.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(values["num_frames"], np.asarray(values["mean"]), np.asarray(values["m2"]))
