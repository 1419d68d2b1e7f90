"""Batches for diffusion models: crops of stored latents with noise, times, and what the model is told.

Everything random is drawn here, on the CPU, row by row of the global batch: a function of (seed, step, row),
whatever the number of processes.

Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import GivenConditions, condition_coins
from ..core.job import Batch
from ..core.loop import step_seed
from ..core.sampler import CropSampler
from ..core.schema import Train
from ..tokenize.families.codec_oobleck import Posterior
from ..tokenize.features.clip_conditions import ClipConditions, to_batch
from .audio_crops import AudioCrops
from .objective import Objective

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Validation looks at these, with the same noise each time."""

# Validation looks at no more than this many clips.
_VALID_CLIPS = 256

# As Stable Audio's training has it: most clips are made whole.
_WHOLE, _SEGMENTS = 0.8, 0.1
_MAX_SEGMENTS = 4


class LatentBatches:
    """Training and validation on the latents of a store."""

    def __init__(
        self,
        clips: ClipConditions,
        objective: Objective,
        config: Train,
        *,
        condition_dropout: float = 0.0,
        mask_conditions: bool = False,
        sample_posterior: bool = False,
        silence: Posterior | None = None,
        audio: AudioCrops | None = None,
    ) -> None:
        """`silence` [1, D, T] follows clips that are too short, and counts; without it they are masked.

        With `audio`, training batches hold `audio` [B, C, N] in place of `latents`, for `AudioCrops.encoded`.
        """
        self._clips, self._objective, self._config = clips, objective, config
        self._condition_dropout = condition_dropout
        self._mask_conditions, self._sample_posterior = mask_conditions, sample_posterior
        self._silence = silence
        self._audio = audio
        self._sampler = (
            CropSampler(clips.split.num_frames, clips.num_frames, config.seed)
            if audio is None
            else audio.sampler(config.seed)
        )

    def batch(self, step: int, rows: range) -> Batch:
        """`latents` and `noise` [B, D, T], `time` [B], `mask` and `known` [B, T] where they say something,
        and the conditions: rows of the global batch of a step."""
        config = self._config
        crops = [(c.clip, c.start) for c in self._sampler.draw(step, config.batch_size, rows)]
        # Coins for the whole global batch, of which this process takes its rows: they cannot depend on how
        # many processes there are.
        coins = torch.Generator().manual_seed(step_seed(config.seed, 2, step))
        keep = condition_coins(config.batch_size, self._condition_dropout, coins)
        hop_length = 1 if self._audio is None else self._audio.hop_length
        told = self._clips.given([(clip, start // hop_length) for clip, start in crops])
        given = {name: one.hide(keep[rows.start : rows.stop]) for name, one in told.items()}
        generators = [
            torch.Generator().manual_seed(step_seed(config.seed, 3, step * config.batch_size + row))
            for row in rows
        ]
        collate = self._collate if self._audio is None else self._collate_audio
        batch = collate(crops, given, generators)
        batch["time"] = torch.cat([self._objective.draw_times(1, one) for one in generators])
        if self._mask_conditions:
            lengths = (
                batch["mask"].sum(1).tolist() if "mask" in batch else [self._clips.num_frames] * len(rows)
            )
            batch["known"] = torch.stack(
                [
                    draw_known(self._clips.num_frames, length, one)
                    for length, one in zip(lengths, generators, strict=True)
                ]
            )
        return batch

    def validation(self) -> list[Batch]:
        """Held-out clips at each of `TIMES`, from their beginning.

        Clips with a label value that does not occur in training are left out.
        """
        known = self._clips.known(range(len(self._clips.split)))
        chosen = np.random.default_rng(0).permutation(known)[:_VALID_CLIPS].tolist()
        batches = []
        for first in range(0, len(chosen), self._config.batch_size):
            crops = [(clip, 0) for clip in chosen[first : first + self._config.batch_size]]
            generators = [torch.Generator().manual_seed(step_seed(0, 4, clip)) for clip, _ in crops]
            batch = self._collate(crops, self._clips.given(crops), generators)
            batches += [batch | {"time": torch.full((len(crops),), time)} for time in TIMES]
        return batches

    def _collate(
        self, crops: Sequence[tuple[int, int]], given: GivenConditions, generators: Sequence[torch.Generator]
    ) -> Batch:
        split, num_frames = self._clips.split, self._clips.num_frames
        found = [
            self._latents(clip, start, one) for (clip, start), one in zip(crops, generators, strict=True)
        ]
        latents = torch.zeros(len(found), found[0].shape[0], num_frames)
        mask = torch.zeros(len(found), num_frames, dtype=torch.bool)
        for i, crop in enumerate(found):
            length = crop.shape[1]
            latents[i, :, :length] = crop
            mask[i, :length] = True
            if self._silence is not None:
                latents[i, :, length:] = self._drawn(
                    self._silence.mean[0, :, length:], self._silence.scale[0, :, length:], generators[i]
                )
        noise = torch.stack([torch.randn(latents.shape[1:], generator=one) for one in generators])
        batch = {"latents": latents, "noise": noise} | to_batch(given)
        # Attention without a mask is faster.
        is_full = self._silence is not None or split.num_frames.min() >= num_frames
        return batch if is_full else batch | {"mask": mask}

    def _collate_audio(
        self, crops: Sequence[tuple[int, int]], given: GivenConditions, generators: Sequence[torch.Generator]
    ) -> Batch:
        audio, num_frames, dim = self._audio, self._clips.num_frames, self._clips.latent_dim
        assert audio is not None
        batch = {"audio": torch.stack([audio.read(clip, start) for clip, start in crops])} | to_batch(given)
        for name in ("posterior", "noise") if self._sample_posterior else ("noise",):
            batch[name] = torch.stack([torch.randn(dim, num_frames, generator=one) for one in generators])
        lengths = torch.tensor([audio.frames_left(clip, start) for clip, start in crops])
        # As in `_collate`; silence needs no latents that are stored, because it is encoded.
        is_full = self._silence is not None or self._clips.split.num_frames.min() >= num_frames
        return batch if is_full else batch | {"mask": torch.arange(num_frames) < lengths[:, None]}

    def _latents(self, clip: int, start: int, generator: torch.Generator) -> Tensor:
        split, num_frames = self._clips.split, self._clips.num_frames
        found = torch.from_numpy(split.latents(clip, start, num_frames))
        scale = split.latents_scale(clip, start, num_frames)
        return self._drawn(found, None if scale is None else torch.from_numpy(scale), generator)

    def _drawn(self, mean: Tensor, scale: Tensor | None, generator: torch.Generator) -> Tensor:
        """The mean, or one draw of the posterior."""
        if scale is None or not self._sample_posterior:
            return mean
        return mean + scale * torch.randn(mean.shape, generator=generator)


def draw_known(num_frames: int, length: int, generator: torch.Generator) -> Tensor:
    """Which frames of a clip are told, [T] bool; the clip has `length` of them, and one at least is not told.

    Eight clips of ten are told nothing, one all but up to four random segments, one its beginning.
    """
    known = torch.zeros(num_frames, dtype=torch.bool)
    coin = float(torch.rand((), generator=generator))
    if coin < _WHOLE or length < 2:
        return known

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    if coin >= _WHOLE + _SEGMENTS:
        known[: draw(1, length)] = True
        return known
    known[:length] = True
    for _ in range(draw(1, _MAX_SEGMENTS + 1)):
        start = draw(0, length)
        known[start : start + draw(1, max(2, length // 2))] = False
    return known
