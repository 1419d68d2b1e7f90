"""Batches for language models: crops of stored clips with what the model is told about them.

Shapes: B batch, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..core.conditions import Conditions, GivenConditions
from ..core.job import Batch
from ..tokenize.features.clip_conditions import ClipConditions, to_batch
from ..tokenize.store import TokenSplit, TokenStore


class TokenBatches(ClipConditions):
    """Crops of stored clips, padded to one length, with their conditions."""

    def __init__(self, store: TokenStore, split: TokenSplit, conditions: Conditions, num_frames: int) -> None:
        super().__init__(store, split, conditions, num_frames)
        self._num_codebooks = store.info.num_codebooks

    def collate(self, crops: Sequence[tuple[int, int]], given: GivenConditions) -> Batch:
        """`codes` [B, K, T], `mask` [B, T] and the conditions of (clip, first frame) pairs."""
        found = [self.split.codes(clip, start, self.num_frames) for clip, start in crops]
        codes = np.zeros((len(found), found[0].shape[0], self.num_frames), dtype=np.int64)
        mask = np.zeros((len(found), self.num_frames), dtype=bool)
        for i, crop in enumerate(found):
            codes[i, :, : crop.shape[1]] = crop
            mask[i, : crop.shape[1]] = True
        return {"codes": torch.from_numpy(codes), "mask": torch.from_numpy(mask)} | to_batch(given)

    def collate_packed(
        self, rows: Sequence[Sequence[tuple[int, int]]], given: GivenConditions, gap: int
    ) -> Batch:
        """Clips one after another in rows, `gap` masked frames after each; `given` are all clips' conditions.

        The entries of `collate`, and `clips` [B, T] int64: the number of each frame's clip among all of them.
        """
        num_codebooks, num_frames = self._num_codebooks, self.num_frames
        codes = np.zeros((len(rows), num_codebooks, num_frames), dtype=np.int64)
        mask = np.zeros((len(rows), num_frames), dtype=bool)
        clips = np.zeros((len(rows), num_frames), dtype=np.int64)
        number = 0
        for i, row in enumerate(rows):
            place = 0
            for clip, start in row:
                found = self.split.codes(clip, start, num_frames)
                stop = place + found.shape[1]
                codes[i, :, place:stop] = found
                mask[i, place:stop] = True
                clips[i, place:] = number
                place, number = stop + gap, number + 1
        batch = {"codes": torch.from_numpy(codes), "mask": torch.from_numpy(mask)}
        return batch | {"clips": torch.from_numpy(clips)} | to_batch(given)
