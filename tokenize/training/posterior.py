"""What a VAE's posterior is like over many frames: whether it has collapsed, and how far it is from N(0, I).

Saved beside a trained VAE as `posterior.json`.

Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.files import write_json
from ..latent_stats import LatentStats

POSTERIOR_NAME = "posterior.json"

# arXiv:1509.00519, sec. 5.3 (δ): with less variance in its mean, a dimension says nothing of the audio.
_ACTIVE_VARIANCE = 1e-2

# Means within this of 0 and standard deviations within this factor of 1 pass for the prior's.
_MEAN_TOLERANCE = 0.5
_STD_TOLERANCE = 1.5


# arXiv:1312.6114, appendix B.
def kl_from_prior(mean: Tensor, scale: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of N(mean, scale²) from N(0, 1), element by element, in nats."""
    return 0.5 * (mean.square() + scale.square() - 1) - scale.log()


def noise_of_rows(seed: int, step: int, rows: range, shape: Sequence[int]) -> Tensor:
    """Noise from N(0, I) for `rows` of a step's global batch, `[rows, *shape]`, whoever has the others."""
    drawn = [np.random.default_rng([seed % 2**64, step, row]).standard_normal(shape) for row in rows]
    return torch.from_numpy(np.stack(drawn).astype(np.float32))


@dataclass(frozen=True)
class PosteriorSummary:
    """What `posterior.json` holds; lists have a number for each of the D dimensions."""

    num_frames: int
    mean: list[float]
    """Mean of the aggregate posterior, the mixture of the posteriors of all frames."""
    std: list[float]
    """Standard deviation of the aggregate posterior; that of the prior is 1."""
    scale: list[float]
    """Mean standard deviation of the posterior of a frame."""
    kl_nats: list[float]
    """Mean divergence of the posterior of a frame from the prior."""
    variance_of_means: list[float]
    """By which active dimensions are told."""

    @property
    def num_active(self) -> int:
        """Dimensions whose posterior means vary with the audio (arXiv:1509.00519, sec. 5.3)."""
        return sum(variance > _ACTIVE_VARIANCE for variance in self.variance_of_means)

    def metrics(self) -> dict[str, float]:
        """Scalars for the log."""
        return {
            "kl": float(np.sum(self.kl_nats)),
            "kl_per_dim_max": max(self.kl_nats),
            "kl_per_dim_min": min(self.kl_nats),
            "active_units": float(self.num_active),
            "posterior_scale": float(np.mean(self.scale)),
            "aggregate_mean": float(np.sqrt(np.mean(np.square(self.mean)))),
            "aggregate_std": float(np.mean(self.std)),
        }

    def far_from_prior(self) -> str | None:
        """One line that says how the aggregate posterior differs from N(0, I); None where it hardly does."""
        centred = all(abs(mean) <= _MEAN_TOLERANCE for mean in self.mean)
        if centred and all(1 / _STD_TOLERANCE <= std <= _STD_TOLERANCE for std in self.std):
            return None
        return (
            "latents of real audio have means from"
            f" {min(self.mean):.2f} to {max(self.mean):.2f} and standard deviations from {min(self.std):.2f}"
            f" to {max(self.std):.2f}, not 0 and 1: what is drawn from N(0, I) is unlike them"
        )

    def write(self, folder: Path) -> None:
        """Write `posterior.json`."""
        write_json(folder / POSTERIOR_NAME, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What `write` wrote; None if the folder has no such file. Raises `UserError` if it is damaged."""
        path = folder / POSTERIOR_NAME
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} does not describe a posterior: {error}") from error


@dataclass
class PosteriorStats:
    """Gathers frames."""

    _means: list[LatentStats] = field(default_factory=list)
    _sums: list[Tensor] = field(default_factory=list)  # [3, D] each: of scales, their squares, divergences

    def add(self, mean: Tensor, scale: Tensor) -> None:
        """The posteriors of some clips, `[B, D, T]` both."""
        for clip in mean.detach().cpu().numpy():
            self._means.append(LatentStats.of(clip))
        parts = [scale, scale.square(), kl_from_prior(mean, scale)]
        self._sums.append(torch.stack([part.detach().double().sum((0, 2)).cpu() for part in parts]))

    def summary(self) -> PosteriorSummary:
        """Of all frames so far, of which there must be one."""
        stats = self._means[0]
        for other in self._means[1:]:
            stats = stats.merge(other)
        scale, squares, divergence = (torch.stack(self._sums).sum(0) / stats.num_frames).tolist()
        variances = np.square(stats.std).tolist()
        return PosteriorSummary(
            num_frames=stats.num_frames,
            mean=stats.mean.tolist(),
            # Of a mixture: the variance of the means plus the mean of the variances.
            std=[math.sqrt(v + s) for v, s in zip(variances, squares, strict=True)],
            scale=scale,
            kl_nats=divergence,
            variance_of_means=variances,
        )
