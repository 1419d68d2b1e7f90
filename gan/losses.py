"""The games that a generator and a discriminator play, and what a discriminator is asked beside them.

A `Game` turns scores into losses, whatever the networks are; `head_loss` is what recognising the conditions
costs. Expectations are means over the batch.

Shapes: B batch, n places that a score judges, V values of a condition, L states of a sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.conditions import Conditions, Given, GivenConditions
from ..core.schema_gan import GanLoss, HingeLoss, MinimaxLoss, NonSaturatingLoss, WassersteinLoss

HeadKind = Literal["cross_entropy", "binary_cross_entropy", "squared_error"]
"""How a head is trained: labels and sequences by cross-entropy, soft labels by its binary form, other numbers
by squared error."""

_NO_VALUE = -1  # stands for the value of a hidden label


class Game(ABC):
    """What a discriminator and a generator minimise.

    Scores are those of `Verdict`: a list with one tensor a discriminator, `[B]`, or `[B, n]` where it judges
    n places. Losses are means over clips and places, summed over discriminators, and come as scalars; those
    with a weight are multiplied by it.
    """

    ceiling: ClassVar[float | None] = 100.0
    """How far from 0 scores are on average only in a game that has run away. As log-odds they would mean
    certainty to forty digits; None where scores are not bounded by anything."""

    def __init__(
        self,
        *,
        gradient_weight: float = 0.0,
        drift_weight: float = 0.0,
        r1_weight: float = 0.0,
        r1_every: int = 1,
    ) -> None:
        self._gradient_weight = gradient_weight
        self._drift_weight = drift_weight
        self._r1_weight = r1_weight
        self._r1_every = r1_every

    @property
    def needs_mixture(self) -> bool:
        """Whether the discriminator's loss has a `gradient_penalty`."""
        return self._gradient_weight > 0

    def needs_real_gradient(self, step: int) -> bool:
        """Whether the discriminator's loss has an `r1` in this step: real images need `requires_grad` before
        they are judged."""
        return self._r1_weight > 0 and step % self._r1_every == 0

    @abstractmethod
    def _of_real(self, score: Tensor) -> Tensor:
        """What the discriminator loses by each score of something real."""

    @abstractmethod
    def _of_fake(self, score: Tensor) -> Tensor:
        """What the discriminator loses by each score of something made."""

    @abstractmethod
    def _of_made(self, score: Tensor) -> Tensor:
        """What the generator loses by each score of what it has made."""

    def discriminator(self, real_scores: list[Tensor], fake_scores: list[Tensor]) -> Tensor:
        """The discriminator's loss without the terms below."""
        pairs = zip(real_scores, fake_scores, strict=True)
        losses = [self._of_real(r.float()).mean() + self._of_fake(f.float()).mean() for r, f in pairs]
        return torch.stack(losses).sum()

    def generator(self, fake_scores: list[Tensor]) -> Tensor:
        """The generator's loss."""
        return torch.stack([self._of_made(score.float()).mean() for score in fake_scores]).sum()

    def gradient_penalty(self, scores_of_mixture: list[Tensor], mixture: Tensor) -> Tensor:
        """How far the norms of the gradients are from 1 (arXiv:1704.00028, eq. 3), one norm a clip.

        `mixture` `[B, …]` lies between real and made images, each clip's somewhere else (sec. 4); it requires
        a gradient, and the scores are a function of it. Where a discriminator judges places, its critic is
        their mean.
        """
        norms = [gradient.norm(dim=1) for gradient in _gradients(scores_of_mixture, mixture)]
        return self._gradient_weight * torch.stack([(norm - 1).square().mean() for norm in norms]).sum()

    def drift(self, real_scores: list[Tensor]) -> Tensor:
        """What keeps the scores of real clips near 0 (arXiv:1710.10196, app. A.1)."""
        return (
            self._drift_weight * torch.stack([score.float().square().mean() for score in real_scores]).sum()
        )

    def r1(self, real_scores: list[Tensor], real: Tensor) -> Tensor:
        """Half the squared norm of the gradients at real images (arXiv:1801.04406, eq. 9), for all the steps
        until the next that has it.

        `real` `[B, …]` requires a gradient, and the scores are a function of it. Where a discriminator judges
        places, it is the gradient of their mean.
        """
        squares = [gradient.square().sum(1).mean() for gradient in _gradients(real_scores, real)]
        return 0.5 * self._r1_every * self._r1_weight * torch.stack(squares).sum()


class Minimax(Game):
    """arXiv:1406.2661, eq. 1: the generator minimises log(1 - D), which is flat where D is sure."""

    def _of_real(self, score: Tensor) -> Tensor:
        return F.softplus(-score)

    def _of_fake(self, score: Tensor) -> Tensor:
        return F.softplus(score)

    def _of_made(self, score: Tensor) -> Tensor:
        return -F.softplus(score)


class NonSaturating(Minimax):
    """The same, but the generator minimises -log D (arXiv:1406.2661, sec. 3)."""

    def _of_made(self, score: Tensor) -> Tensor:
        return F.softplus(-score)


class Wasserstein(Game):
    """The difference of means of a critic (arXiv:1701.07875, sec. 3)."""

    ceiling = None

    def _of_real(self, score: Tensor) -> Tensor:
        return -score

    def _of_fake(self, score: Tensor) -> Tensor:
        return score

    def _of_made(self, score: Tensor) -> Tensor:
        return -score


class Hinge(Game):
    """Scores beyond ±1 on the right side cost nothing (arXiv:1705.02894)."""

    def _of_real(self, score: Tensor) -> Tensor:
        return F.relu(1 - score)

    def _of_fake(self, score: Tensor) -> Tensor:
        return F.relu(1 + score)

    def _of_made(self, score: Tensor) -> Tensor:
        return -score


def make_game(section: GanLoss) -> Game:
    """What a recipe asks for."""
    match section:
        case MinimaxLoss():
            return Minimax()
        case NonSaturatingLoss():
            return NonSaturating(r1_weight=section.r1_weight, r1_every=section.r1_every)
        case WassersteinLoss():
            return Wasserstein(gradient_weight=section.gradient_weight, drift_weight=section.drift_weight)
        case HingeLoss():
            return Hinge(r1_weight=section.r1_weight, r1_every=section.r1_every)


def head_loss(
    conditions: Conditions,
    kinds: Mapping[str, HeadKind],
    heads: Mapping[str, Tensor],
    told: GivenConditions,
) -> dict[str, Tensor]:
    """For each condition that has a head, the mean loss of recognising it, a scalar.

    `heads` are those of `Verdict`, on clips that are told `told`; numbers are compared as shares of their
    `maximum`. A mean is over the clips, or the states of sequences, that are not hidden; where all are, it is
    0, with gradients of 0.
    """
    losses = {}
    for name, head in heads.items():
        given = told.get(name)
        if given is None:
            losses[name] = (0 * head).sum()
        elif kinds[name] == "cross_entropy":
            losses[name] = _cross_entropy(head.float(), _targets(given))
        else:
            maximum = conditions[name].maximum
            assert maximum is not None
            losses[name] = _of_numbers(kinds[name], head.float(), given, maximum)
    return losses


def _gradients(scores: list[Tensor], image: Tensor) -> list[Tensor]:
    """Of each discriminator's score of a clip, in the clip: `[B, …]` as `[B, n]`, differentiable."""
    # One gradient of the sum over clips is that of each, as far as scores depend on their own clip alone.
    sums = [score.float().reshape(len(score), -1).mean(1).sum() for score in scores]
    return [torch.autograd.grad(total, image, create_graph=True)[0].flatten(1) for total in sums]


def _targets(given: Given) -> Tensor:
    """The values of a label `[B]`, or of one-hot states `[B, L]`, counted from 0; -1 where hidden."""
    if given.values.ndim == 3:
        return torch.where(given.mask, given.values.argmax(-1), _NO_VALUE)
    return torch.where(given.mask, given.values - 1, _NO_VALUE)[:, 0]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of `[B, V]` or `[B, V, L]` with `[B]` or `[B, L]`."""
    total = F.cross_entropy(logits, targets, ignore_index=_NO_VALUE, reduction="sum")
    return total / (targets != _NO_VALUE).sum().clamp(min=1)


def _of_numbers(kind: HeadKind, head: Tensor, given: Given, maximum: float) -> Tensor:
    """Of `[B]`."""
    shown, target = given.mask[:, 0], given.values[:, 0].float() / maximum
    if kind == "binary_cross_entropy":
        each = F.binary_cross_entropy_with_logits(head, target, reduction="none")
    else:
        each = (head - target).square()
    return (each * shown).sum() / shown.sum().clamp(min=1)
