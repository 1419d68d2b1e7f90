"""What is done to codebooks between two steps: their use is followed, and dead entries are replaced.

All of it is a function of the global batch, the seed and the step. Counts are summed over the processes, and
a random frame is the same one however the batch is shared out, so that the processes' codebooks stay equal
to each other and to those of a single process.

Shapes: B batch, K codebooks, V codebook size, d width of an entry, T frames, F frames of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from ...core.job import Batch
from ...core.schema_trained_codecs import DeadCodes
from ..fidelity import codebook_use
from .rvq import RvqCodec

CODES, ASKED = "codes", "asked"
"""Under these names a codec's `Loss.made` hands on `RvqOutput.codes` and `RvqOutput.asked`."""

_USE_DECAY = 0.99


class CodebookUpkeep:
    """A job's `after_step` (see `core.job`)."""

    def __init__(self, codec: RvqCodec, config: DeadCodes | None, seed: int) -> None:
        self._codec = codec
        self._config = config
        self._seed = seed % 2**64  # NumPy takes no negative seeds

    @torch.no_grad()
    def __call__(self, step: int, batches: list[Batch]) -> Mapping[str, Tensor]:
        """Raises nothing of its own; returns the codebooks' efficiency and how many entries are dead."""
        codec, config = self._codec, self._config
        codes = torch.cat([batch[CODES] for batch in batches])  # [B, K, T]
        asked = torch.cat([batch[ASKED] for batch in batches]).float()  # [B, K, d, T]
        counts = reduce(_counts(codes, codec.codebook_size), reduction="sum")  # [K, V]
        codec.follow(counts, codes, asked)
        share = counts * (codec.codebook_size / counts.sum(1, keepdim=True))
        codec.use.lerp_(share.to(codec.use), 1 - (config.decay if config else _USE_DECAY))
        dead = codec.use < (config.below if config else DeadCodes().below)
        num_dead = dead.sum(1).tolist()
        if config is not None:
            for codebook in [k for k, number in enumerate(num_dead) if number]:
                self._replace(codebook, dead[codebook].nonzero()[:, 0], asked[:, codebook], step)
        return {
            "codebooks/efficiency": torch.tensor(codebook_use(codec.use.cpu()).efficiency).to(asked.device),
            "codebooks/dead": torch.tensor(float(sum(num_dead))).to(asked.device),
        }

    def _replace(self, codebook: int, entries: Tensor, asked: Tensor, step: int) -> None:
        """`asked` is `[B, d, T]`. As many entries as there are frames; the others wait for the next step."""
        frames = asked.transpose(1, 2).flatten(0, 1)  # [F, d], those of this process
        num_frames = len(frames) * PartialState().num_processes
        rng = np.random.default_rng([self._seed, step, codebook])
        chosen = torch.from_numpy(rng.permutation(num_frames)[: len(entries)]).to(frames.device)
        entries = entries[: len(chosen)]
        self._codec.replace(codebook, entries, frames_of_all(frames, chosen))
        self._codec.use[codebook, entries] = 1.0  # time to prove themselves


def frames_of_all(frames: Tensor, chosen: Tensor) -> Tensor:
    """`[n, d]`: number `chosen` `[n]` of all processes' `frames` `[F, d]`, those of the first one first."""
    mine = chosen - len(frames) * PartialState().process_index
    is_mine = (mine >= 0) & (mine < len(frames))
    # The others add zeros, so the sum is exact.
    found = torch.where(is_mine[:, None], frames[mine.clamp(0, len(frames) - 1)], 0.0)
    summed: Tensor = reduce(found, reduction="sum")
    return summed


def _counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each entry occurs in `[B, K, T]`: `[K, V]`, float32."""
    of_codebooks = codes.transpose(0, 1).flatten(1)  # [K, B · T]
    counts = torch.zeros(len(of_codebooks), codebook_size, dtype=torch.float32, device=codes.device)
    return counts.scatter_add_(1, of_codebooks, torch.ones_like(of_codebooks, dtype=torch.float32))
