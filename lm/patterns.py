"""Codebook patterns: in which order a language model meets the K tokens of every frame.

A pattern is pure data: a table that says at which *step* of the sequence each token stands. Rearranging
codes, undoing it, masking, and what generation asks are the same few lines for every pattern, derived from
that table. A token may depend on all tokens of earlier steps; those of one step are predicted in parallel.

Shapes: B batch, K codebooks, T frames, S pattern steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

PatternName = Literal["delay", "parallel", "flatten", "coarse_first"]


@dataclass(frozen=True)
class Pattern(ABC):
    """Where each token of a clip stands in the sequence.

    A new pattern says how long a sequence is, fills in the table `steps` and says whether it packs. At every
    step a codebook has one token or none; where it has none the sequence holds the special token.
    """

    num_codebooks: int  # K

    def __post_init__(self) -> None:
        if self.num_codebooks < 1:
            raise ValueError(f"a pattern needs at least 1 codebook, not {self.num_codebooks}")

    @abstractmethod
    def num_steps(self, num_frames: int) -> int:
        """S for a clip of `num_frames` frames."""

    @abstractmethod
    def num_frames(self, num_steps: int) -> int:
        """T for a sequence of `num_steps` steps; raises `ValueError` if no clip has that many."""

    @abstractmethod
    def steps(self, num_frames: int, device: torch.device | None = None) -> Tensor:
        """The step at which frame t of codebook k stands: [K, T] int64, rising along t."""

    @property
    @abstractmethod
    def packs(self) -> bool:
        """Whether clips in a row along time, `gap` frames apart, have their sequences in a row as sequence.

        In other words, whether `apply` commutes with concatenation, for clips of any lengths.
        """

    @property
    def gap(self) -> int:
        """Frames of special tokens between two clips in a row; raises `ValueError` if clips do not pack."""
        if not self.packs:
            raise ValueError(f"clips in a row do not have their sequences in a row under {self}")
        return self.num_frames(2 * self.num_steps(0))  # of two clips without frames, the gap is left

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

    def first_step(self, num_prompt_frames: int, num_frames: int) -> int:
        """The first step with a token to sample, when the first `num_prompt_frames` frames are given whole.

        Later steps may hold tokens of the prompt too. Raises `ValueError` unless some frames are left.
        """
        if not 0 <= num_prompt_frames < num_frames:
            raise ValueError(
                f"a clip of {num_frames} frames needs a shorter prompt, not one of {num_prompt_frames} frames"
            )
        return int(self.steps(num_frames)[:, num_prompt_frames:].min())

    def num_complete_frames(self, num_frames: int, device: torch.device | None = None) -> Tensor:
        """How many frames, from the first on, have all K tokens once steps 0…s are known: [S] int64.

        Frames are complete in the order of time, as every codebook's steps rise. A prompt's frames, known
        before the first step, are not counted apart: take the larger of its length and this.
        """
        last_steps = self.steps(num_frames, device).amax(0)  # [T], rising
        return torch.searchsorted(
            last_steps, torch.arange(self.num_steps(num_frames), device=device), right=True
        )


# Delay pattern: MusicGen, arXiv:2306.05284, sec. 2.2.
@dataclass(frozen=True)
class DelayPattern(Pattern):
    """Codebook k is shifted `delays[k]` steps later, so that it can see the coarser tokens of its frame.

    The smallest delay must be 0: a common shift would only add steps that hold nothing.
    """

    num_codebooks: int = field(init=False, repr=False)  # K, that of the delays
    delays: tuple[int, ...]  # [K] steps

    def __post_init__(self) -> None:
        if not self.delays or min(self.delays) != 0:
            raise ValueError(f"delays must be at least 0, the smallest 0; got {list(self.delays)}")
        object.__setattr__(self, "num_codebooks", len(self.delays))

    @classmethod
    def parallel(cls, num_codebooks: int) -> DelayPattern:
        """No delays: all tokens of a frame at one step, which the codes themselves are."""
        return cls((0,) * num_codebooks)

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
        # Not one tensor of the delays: copied to a GPU, it would make the CPU wait for it.
        return torch.stack([torch.arange(delay, delay + num_frames, device=device) for delay in self.delays])

    @property
    def packs(self) -> bool:
        """Yes: with max(delays) frames between two clips, the last tokens of one precede the next."""
        return True


# Flattening: MusicGen, arXiv:2306.05284, sec. 2.2 (the exact autoregressive decomposition).
@dataclass(frozen=True)
class FlattenPattern(Pattern):
    """One token a step, frame by frame, from codebook 0 to K - 1: every token sees all that are before it."""

    def num_steps(self, num_frames: int) -> int:
        """T · K."""
        return num_frames * self.num_codebooks

    def num_frames(self, num_steps: int) -> int:
        """S / K; raises `ValueError` if that is no whole number."""
        if num_steps % self.num_codebooks:
            raise ValueError(f"{num_steps} steps are no whole frames of {self.num_codebooks} tokens")
        return num_steps // self.num_codebooks

    def steps(self, num_frames: int, device: torch.device | None = None) -> Tensor:
        """Frame t of codebook k stands at step t · K + k: [K, T] int64."""
        first_steps = torch.arange(num_frames, device=device) * self.num_codebooks
        return first_steps + torch.arange(self.num_codebooks, device=device)[:, None]

    @property
    def packs(self) -> bool:
        """Yes, without a gap."""
        return True


# The order of VALL-E, arXiv:2301.02111, sec. 4.2, eq. 1-3, in one autoregressive model.
@dataclass(frozen=True)
class CoarseFirstPattern(Pattern):
    """All frames of codebook 0, one a step, then frame by frame all other codebooks in parallel.

    Only the order of the two halves is VALL-E's. There a second model, which is not autoregressive, predicts
    the other codebooks one after another, each for all frames at once and seeing all frames of the codebooks
    before it (eq. 2). Here one causal model writes both halves: a token of a codebook k ≥ 1 sees codebook 0
    whole and the others in earlier frames, but not the others in its own. That is the order of audiocraft's
    `coarse_first` with its default delays of 0 (before version 1.1.0 it was called `VALLEPattern`, wrongly,
    as its authors say).

    Where the second half begins depends on T: generate clips of a length that the model was trained on. The
    first frame is complete only at step T.
    """

    def num_steps(self, num_frames: int) -> int:
        """2 T; T if there is only codebook 0."""
        return num_frames * self._num_passes

    def num_frames(self, num_steps: int) -> int:
        """S / 2, or S if there is only codebook 0; raises `ValueError` if that is no whole number."""
        if num_steps % self._num_passes:
            raise ValueError(f"{num_steps} steps are not twice a number of frames")
        return num_steps // self._num_passes

    def steps(self, num_frames: int, device: torch.device | None = None) -> Tensor:
        """Frame t stands at step t in codebook 0, at step T + t in all others: [K, T] int64."""
        is_fine = torch.arange(self.num_codebooks, device=device)[:, None] > 0
        return torch.arange(num_frames, device=device) + num_frames * is_fine

    @property
    def packs(self) -> bool:
        """Only with one codebook: the second half of a clip comes after the first half of all clips."""
        return self.num_codebooks == 1

    @property
    def _num_passes(self) -> int:
        return min(self.num_codebooks, 2)


def make_pattern(name: PatternName, num_codebooks: int, delays: Sequence[int] | None = None) -> Pattern:
    """The pattern called `name` for `num_codebooks` codebooks.

    `delays` [K] belong to "delay" alone; without them codebook k is delayed by k steps. Raises `ValueError`
    for delays that do not fit the name or the number of codebooks, and for an unknown name.
    """
    if delays is not None and name != "delay":
        raise ValueError(f"only the pattern 'delay' has delays: leave out {list(delays)} for {name!r}")
    if delays is not None and len(delays) != num_codebooks:
        raise ValueError(f"{num_codebooks} codebooks need {num_codebooks} delays, not {list(delays)}")
    match name:
        case "delay":
            return DelayPattern(tuple(range(num_codebooks) if delays is None else delays))
        case "parallel":
            return DelayPattern.parallel(num_codebooks)
        case "flatten":
            return FlattenPattern(num_codebooks)
        case "coarse_first":
            return CoarseFirstPattern(num_codebooks)
        case _:
            raise ValueError(
                f"unknown pattern {name!r}: known are 'delay', 'parallel', 'flatten' and 'coarse_first'"
            )
