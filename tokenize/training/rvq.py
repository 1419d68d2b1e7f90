"""What a codec with residual vector quantisation is to its training, whatever its architecture.

Shapes: B batch, N samples, K codebooks, V codebook size, d width of an entry, T frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from ...core.schema import Train

CLIPS_AT_ONCE = 16
"""Of the many by which codebooks are found, so many go through the encoder together."""


@dataclass
class RvqOutput:
    """One forward pass."""

    audio: Tensor  # [B, 1, N]
    codes: Tensor  # [B, K, T] int64
    asked: Tensor  # [B, K, d, T]: what each codebook was asked to stand for
    codebook: Tensor  # scalar; moves entries towards what they stand for
    commitment: Tensor  # scalar; moves that towards the entries


class RvqCodec(nn.Module, ABC):
    """An autoencoder to train, with its codebooks.

    `use` `[K, V]` is a moving average of how often each entry is used, as a multiple of an even use. It and
    all else that training has to remember are buffers, so that a checkpoint has them.
    """

    use: Tensor

    def __init__(self, num_codebooks: int, codebook_size: int, codebook_weight: float) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.codebook_weight = codebook_weight
        """Weight of `RvqOutput.codebook` in the loss."""
        self.register_buffer("use", torch.ones(num_codebooks, codebook_size))

    largest_bandwidth_kbps: float | None = None
    """Of codecs that have several: the one at which all codebooks are used."""

    @abstractmethod
    def forward(self, audio: Tensor, num_used: Tensor | None = None) -> RvqOutput:
        """Code and decode `[B, 1, N]`; clip by clip through the first `num_used` `[B]` codebooks, or all."""

    @abstractmethod
    def draw_used(self, rng: np.random.Generator, batch_size: int) -> np.ndarray:
        """How many codebooks each clip of a global batch goes through in training: `[B]` int64."""

    @abstractmethod
    def replace(self, codebook: int, entries: Tensor, values: Tensor) -> None:
        """Let `entries` `[n]` of one codebook be `values` `[n, d]`."""

    @abstractmethod
    def find_codebooks(self, examples: Tensor, least_use: float = 0.0) -> None:
        """Codebooks anew, by k-means of what the encoder makes of `[B, 1, N]`; on this process's device.

        `least_use` as in `start_codebooks`.
        """

    def follow(self, counts: Tensor, codes: Tensor, asked: Tensor) -> None:
        """Move entries that learn without a gradient, after each step; all processes do it together.

        `counts` `[K, V]` are those of the global batch, `codes` and `asked` are this process's.
        """

    def sums_of(self, codes: Tensor, asked: Tensor) -> Tensor:
        """What each entry stood for in the global batch, added up: `[K, V, d]`; all processes together.

        `codes` `[B, K, T]` and `asked` `[B, K, d, T]` are this process's. Every clip counts for every
        codebook: what it asks of one that it did not go through is what it would ask of it at the full
        bandwidth.
        """
        width = asked.shape[2]
        sums = asked.new_zeros(self.num_codebooks, self.codebook_size, width)
        for number in range(self.num_codebooks):
            frames = asked[:, number].transpose(1, 2).reshape(-1, width)
            sums[number].index_add_(0, codes[:, number].flatten(), frames)
        summed: Tensor = reduce(sums, reduction="sum")
        return summed

    @abstractmethod
    def optimizer(self, train: Train) -> torch.optim.Optimizer:
        """What updates its parameters."""

    @abstractmethod
    def save(self, folder: Path, store: str) -> None:
        """Write it in the hub's layout, in the number format `store`."""
