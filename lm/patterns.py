"""Codebook patterns: in which order a language model meets the K tokens of every frame.

A pattern is pure data: a table that says at which *step* of the sequence each token stands. Rearranging
codes, undoing it and masking are the same few lines for every pattern, derived from that table.

Shapes: B batch, K codebooks, T frames, S pattern steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Pattern(ABC):
    """Where each token of a clip stands in the sequence.

    A new pattern says how long a sequence is and fills in the table `steps`. At every step a codebook has
    one token or none; where it has none the sequence holds the special token.
    """

    @property
    @abstractmethod
    def num_codebooks(self) -> int:
        """K."""

    @abstractmethod
    def num_steps(self, num_frames: int) -> int:
        """S for a clip of `num_frames` frames."""

    @abstractmethod
    def num_frames(self, num_steps: int) -> int:
        """T for a sequence of `num_steps` steps; raises `ValueError` if it is too short for the pattern."""

    @abstractmethod
    def steps(self, num_frames: int, device: torch.device | None = None) -> Tensor:
        """The step at which frame t of codebook k stands: [K, T] int64, rising along t."""

    def apply(self, codes: Tensor, special: int) -> Tensor:
        """Codes [B, K, T] as a sequence [B, K, S], with `special` where a codebook has no token."""
        batch_size, num_codebooks, num_frames = codes.shape
        if num_codebooks != self.num_codebooks:
            raise ValueError(
                f"the pattern is for {self.num_codebooks} codebooks, the codes have {num_codebooks}"
            )
        sequence = codes.new_full((batch_size, num_codebooks, self.num_steps(num_frames)), special)
        return sequence.scatter_(2, self.steps(num_frames, codes.device).expand_as(codes), codes)

    def revert(self, sequence: Tensor) -> Tensor:
        """The codes [B, K, T] in a sequence [B, K, S]; undoes `apply`."""
        batch_size, num_codebooks, num_steps = sequence.shape
        if num_codebooks != self.num_codebooks:
            raise ValueError(
                f"the pattern is for {self.num_codebooks} codebooks, the sequence has {num_codebooks}"
            )
        steps = self.steps(self.num_frames(num_steps), sequence.device)
        return sequence.gather(2, steps.expand(batch_size, -1, -1))

    def mask(self, num_frames: int, device: torch.device | None = None) -> Tensor:
        """True where a codebook has a token: [K, S] bool."""
        shape = self.num_codebooks, self.num_steps(num_frames)
        return torch.zeros(shape, dtype=torch.bool, device=device).scatter_(
            1, self.steps(num_frames, device), True
        )


# Delay pattern: MusicGen, arXiv:2306.05284, sec. 2.2.
@dataclass(frozen=True)
class DelayPattern(Pattern):
    """Codebook k is shifted `delays[k]` steps later, so that it can see the coarser tokens of its frame.

    Zero delays everywhere are the parallel pattern. The smallest delay must be 0: a common shift would only
    add steps that hold nothing.
    """

    delays: tuple[int, ...]  # [K] steps

    def __post_init__(self) -> None:
        if not self.delays or min(self.delays) != 0:
            raise ValueError(f"delays must be at least 0, the smallest 0; got {list(self.delays)}")

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.delays)

    def num_steps(self, num_frames: int) -> int:
        """T + max(delays)."""
        return num_frames + max(self.delays)

    def num_frames(self, num_steps: int) -> int:
        """S - max(delays); raises `ValueError` if that is negative."""
        num_frames = num_steps - max(self.delays)
        if num_frames < 0:
            raise ValueError(f"{num_steps} steps are fewer than the largest delay {max(self.delays)}")
        return num_frames

    def steps(self, num_frames: int, device: torch.device | None = None) -> Tensor:
        """Frame t of codebook k stands at step t + delays[k]: [K, T] int64."""
        frames = torch.arange(num_frames, device=device)
        return frames + torch.tensor(self.delays, device=device)[:, None]
