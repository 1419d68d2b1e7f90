"""What the small families of language models have in common: WaveNet, causal convolutions, recurrence.

Their step is a program (`lm/decoders/step_program.py`), conditions are summed into it, and clips may be of
any length.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size, D model width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.conditions import Conditions, GivenConditions
from ...core.errors import UserError
from ..decoders.decoder import Prepared, Weights
from ..decoders.step_decoder import prepare_program
from ..decoders.step_program import Initial, Program
from ..language_model import LanguageModel, LMConfig, LMLoss
from ..patterns import Pattern, make_pattern

StepPattern = Literal["delay", "parallel", "flatten"]


@dataclass(frozen=True, kw_only=True)
class StepConfig(LMConfig):
    """A family whose step is a program."""

    pattern: StepPattern = "parallel"
    """In which order the model meets the tokens of a frame; with one codebook all are the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        other = next((c for c in self.conditions if c.fuse != "sum"), None)
        if other is not None:
            raise UserError(
                f"condition {other.name!r} cannot enter a {self.kind} by '{other.fuse}': choose fuse: sum"
            )

    @classmethod
    def for_codec(cls, codec: Mapping[str, Any], conditions: Conditions | None = None, **shape: Any) -> Self:
        """A model for the tokens of `codec` (the content of `codec.json`); `shape` are the other settings."""
        return cls(
            num_codebooks=codec["num_codebooks"],
            codebook_size=codec["codebook_size"],
            frame_rate=codec["frame_rate"],
            codec=codec,
            conditions=conditions or Conditions(),
            **shape,
        )

    def make_pattern(self) -> Pattern:
        """The codebook pattern that the model is for."""
        return make_pattern(self.pattern, self.num_codebooks)

    @property
    def context_frames(self) -> int | None:
        """How many frames a prediction looks back at most; None: as far as there are any."""
        return None

    def summary(self) -> str:
        """A line for the log about what the settings amount to."""
        return f"{self.kind} over {self.num_codebooks} codebooks of {self.codebook_size}"


class StepModel(LanguageModel):
    """A language model whose step is a program."""

    config: StepConfig

    @abstractmethod
    def logits(self, tokens: Tensor, conditions: GivenConditions | None = None) -> Tensor:
        """Unnormalised log-probabilities of the next step's tokens: [B, K, S] to [B, K, S, V].

        The input is the sequence that `pattern.apply` makes, one step late: step 0 holds the special token.
        """

    @abstractmethod
    def step_program(self) -> Program:
        """The step, as generation runs it."""

    @abstractmethod
    def initial_state(self, conditions: GivenConditions, num_rows: int) -> Initial:
        """What the program's buffers hold before step 0, for `num_rows` rows under `conditions`."""

    def prepare(self, weights: Weights = "fp32") -> Prepared:
        """See `lm/decoders/step_decoder.py`."""
        return prepare_program(self, weights)

    def forward(
        self,
        codes: Tensor,
        conditions: GivenConditions | None = None,
        frame_mask: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> LMLoss:
        """The loss of codes [B, K, T] under `conditions` (None: all hidden).

        Frames that are False in `frame_mask` [B, T] (the padding of a short clip) are neither seen nor
        counted, so a padded clip has exactly the loss of the clip alone. Frames that are False in `counted`
        [B, T] are seen but not counted: of a crop from within a recording those that would see less than the
        whole recording lets them see.
        """
        special = self.config.special
        if frame_mask is not None:
            codes = codes.masked_fill(~frame_mask[:, None], special)
        sequence = self.pattern.apply(codes, special)
        logits = self.logits(F.pad(sequence[:, :, :-1], (1, 0), value=special), conditions)
        targets = codes if counted is None else codes.masked_fill(~counted[:, None], special)
        steps = self.pattern.steps(codes.shape[2], codes.device)  # [K, T]
        return token_loss(
            [logits[:, k].index_select(1, steps[k]) for k in range(codes.shape[1])], targets, special
        )


def token_loss(logits: list[Tensor], targets: Tensor, special: int) -> LMLoss:
    """Cross-entropy of K logits [B, T, V] for `targets` [B, K, T]; special tokens are not counted."""
    sums = [
        F.cross_entropy(
            one.flatten(0, 1).float(), targets[:, k].flatten(), ignore_index=special, reduction="sum"
        )
        for k, one in enumerate(logits)
    ]
    total = torch.stack(sums)  # [K]
    num_tokens = (targets[:, 0] != special).sum() * len(sums)
    count = num_tokens.clamp(min=1)
    return LMLoss(total.sum() / count, num_tokens, (total * len(sums) / count).detach())
