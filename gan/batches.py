"""Batches for adversarial models: crops of stored latents, noise, and whatever else is random.

Everything random is drawn here, on the CPU, row by row of the global batch: a function of (seed, step, row),
whatever the number of processes.

Shapes: B batch, D latent width of the codec, T its frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.job import Batch
from ..core.loop import step_seed
from ..core.sampler import CropSampler
from ..core.schema import Train
from ..tokenize.features.clip_conditions import to_batch
from .conditions.told import ClipTold
from .crops import some_clips
from .networks.family import Generator

REAL, NOISE, OTHER_NOISE, DRAWS, MIX, STEP = "real", "noise", "other_noise", "draws", "mix", "step"
"""Entries of a batch: latents `[B, D, T]`; the noise of the clips that the discriminator sees, and of those
that the generator is judged by, `[B, …]`; the discriminator's random numbers for three images, one after
another, `[B, 3 n]`; where between a real clip and a made one their mixture lies, `[B]`; the step's number."""


def draw_noise(network: Generator, num_frames: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise `[B, …]` for clips of `num_frames` frames of an image, each from its own generator."""
    shape = network.noise_shape(num_frames)
    if network.noise_kind == "uniform":
        return torch.stack([torch.rand(shape, generator=one) * 2 - 1 for one in generators])
    return torch.stack([torch.randn(shape, generator=one) for one in generators])


class GanBatches:
    """Training batches of one split."""

    def __init__(
        self, told: ClipTold, network: Generator, image_frames: int, num_draws: int, config: Train
    ) -> None:
        """`image_frames` are those of an image, `num_draws` a discriminator's for each clip."""
        self._told, self._network, self._config = told, network, config
        self._image_frames, self._num_draws = image_frames, num_draws
        self._sampler = CropSampler(told.split.num_frames, told.num_frames, config.seed)

    def batch(self, step: int, rows: range) -> Batch:
        """The entries named above and the conditions, for rows of the global batch of a step."""
        config = self._config
        crops = [(c.clip, c.start) for c in self._sampler.draw(step, config.batch_size, rows)]
        generators = [
            torch.Generator().manual_seed(step_seed(config.seed, 3, step * config.batch_size + row))
            for row in rows
        ]
        real, given = self._told.read(crops)
        return {
            REAL: real,
            NOISE: draw_noise(self._network, self._image_frames, generators),
            OTHER_NOISE: draw_noise(self._network, self._image_frames, generators),
            DRAWS: torch.stack([torch.rand(3 * self._num_draws, generator=one) for one in generators]),
            MIX: torch.cat([torch.rand(1, generator=one) for one in generators]),
            STEP: torch.tensor(step),
            **to_batch(given),
        }

    def examples(self, num_clips: int) -> Tensor:
        """Latents `[B, D, T]` of clips from all over the split, from their beginning."""
        return self._told.latents([(clip, 0) for clip in some_clips(self._told.split, num_clips)])


def fixed_crops(told: ClipTold, num_clips: int) -> list[tuple[int, int]]:
    """The beginnings of the same few clips every time, for validation; fewer where there are not as many.

    Those with a label value that does not occur in training are left out.
    """
    known = told.known(range(len(told.split)))
    return [(clip, 0) for clip in np.random.default_rng(0).permutation(known)[:num_clips].tolist()]
