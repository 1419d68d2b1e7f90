"""A language model as generation runs it: step after step over what it has sampled itself.

A family of models offers a `Decoder`; what it must say is how tokens become logits. The loop that samples is
here, once; a family that can do better (a graph of the whole step, a compiled block of samples) overrides
it.

Shapes: B clips, R rows of the model (B, or 2 B under guidance), K codebooks, S pattern steps, V codebook
size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...core.conditions import GivenConditions
from ..sampling import Sampling

Weights = Literal["fp32", "bf16", "int8"]
"""Number format of the weights that generation reads; int8 has one scale for each output."""


@dataclass
class Draft:
    """Clips that are being generated: what is known, and what is to be sampled."""

    tokens: Tensor
    """[B, K, S + 1] int64: the model's input, a step of special tokens and then the pattern. Sampled tokens
    are written here."""
    to_sample: Tensor
    """[B, K, S] bool: which tokens are sampled, and not given."""
    noise: Tensor
    """[B, K, S] float32 in (0, 1]."""
    sampling: Sampling

    def take(self, logits: Tensor, position: Tensor) -> None:
        """Sample the pattern's step `position` [1], which only the device knows, from logits [R, K, V]."""
        sampled = self.sampling(logits, self.noise.index_select(2, position)[:, :, 0])
        given = self.tokens.index_select(2, position + 1)
        kept = torch.where(self.to_sample.index_select(2, position), sampled[:, :, None], given)
        self.tokens.index_copy_(2, position + 1, kept)


class Decoder(ABC):
    """The state of a model over the steps that it has seen, for a fixed number of rows."""

    num_seen: int = 0
    """Steps of the input that it has seen."""

    @abstractmethod
    def feed(self, tokens: Tensor) -> Tensor:
        """The next steps of the input [R, K, S], to the logits after the last one [R, K, V]."""

    def run(self, draft: Draft, start: int, stop: int) -> None:
        """Sample the pattern's steps `start` to `stop` - 1; steps before `start` are known.

        Nothing in here waits for the device.
        """
        guided = draft.sampling.is_guided
        for step in range(start, stop):
            new = draft.tokens[:, :, self.num_seen : step + 1]
            logits = self.feed(torch.cat([new, new]) if guided else new)
            self.num_seen = step + 1
            sampled = draft.sampling(logits, draft.noise[:, :, step])
            draft.tokens[:, :, step + 1] = torch.where(
                draft.to_sample[:, :, step], sampled, draft.tokens[:, :, step + 1]
            )

    def close(self) -> None:  # noqa: B027  # most have nothing to hand on
        """Called when its clips are done; buffers may then serve others."""


class Prepared(ABC):
    """A model whose weights are ready for generation."""

    @abstractmethod
    def decoder(self, conditions: GivenConditions, num_rows: int, max_steps: int) -> Decoder:
        """A decoder for `num_rows` rows under `conditions`, for at most `max_steps` steps of input."""
