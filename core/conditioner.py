"""The part of a model that turns conditions into vectors, and says where they enter.

Shapes: B batch, D model width, E width of a condition's states, L its length, P prepended steps, M states of
the memory that cross-attention reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditions import HIDDEN, Condition, Conditions, Given, GivenConditions
from .errors import UserError


@dataclass
class Fused:
    """What conditions add to a sequence; None where no condition enters in that way."""

    added: Tensor | None = None  # [B, D], added to every step that holds tokens
    prefix: Tensor | None = None  # [B, P, D], steps before the first
    prefix_mask: Tensor | None = None  # [B, P] bool, False where a step is not attended to; None: all are
    memory: Tensor | None = None  # [B, M, D], attended to by cross-attention; zeros where masked
    memory_mask: Tensor | None = None  # [B, M] bool; None: all are attended to


class Conditioner(nn.Module):
    """Embeds labels, tags and numbers, projects sequences, and gathers them by how they enter."""

    def __init__(self, conditions: Conditions, dim: int) -> None:
        super().__init__()
        self.conditions = conditions
        sizes = [condition.num_rows for condition in conditions]
        # All tables are one, and the rows of condition i begin at its offset.
        self.table = nn.Embedding(sum(sizes), dim) if any(sizes) else None
        self.offsets = dict(
            zip(conditions.names, torch.tensor([0, *sizes]).cumsum(0).tolist()[:-1], strict=True)
        )
        # A bias, as MusicGen has: a state of zeros still says that there is one.
        sequences = [condition for condition in conditions if condition.kind == "sequence"]
        self.projections = nn.ModuleDict({c.name: nn.Linear(c.width, dim) for c in sequences if c.project})
        for c in sequences:
            if not c.project and c.width != dim:
                raise UserError(
                    f"condition {c.name!r} has no projection, so its width {c.width} must be that of the"
                    f" model, {dim}"
                )
        self.numbers = nn.ModuleDict(
            {c.name: NumberEmbedding(c.maximum, c.width, dim) for c in conditions if c.maximum is not None}
        )
        # Goes where the model goes, and in its number format: not every condition has weights to tell.
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.like: Tensor

    def forward(self, given: GivenConditions, batch_size: int) -> Fused:
        """Vectors for `batch_size` clips; conditions that are not given are hidden."""
        fused = Fused()
        sums: list[Tensor] = []
        parts: dict[str, list[tuple[Tensor, Tensor | None]]] = {"prepend": [], "cross": []}
        for condition in self.conditions:
            states, mask = self._states(condition, given.get(condition.name), batch_size)
            if condition.fuse == "sum":
                count = mask.sum(1, keepdim=True).clamp(min=1)
                sums.append(states.sum(1) / count)  # a label is one state; of a sequence, the mean
            else:
                is_padded = condition.kind == "sequence" and not condition.attend_padding
                parts[condition.fuse].append((states, mask if is_padded else None))
        if sums:
            fused.added = torch.stack(sums).sum(0)
        if parts["prepend"]:
            fused.prefix, fused.prefix_mask = _joined(parts["prepend"])
        if parts["cross"]:
            fused.memory, fused.memory_mask = _joined(parts["cross"])
        return fused

    def _states(self, condition: Condition, given: Given | None, batch_size: int) -> tuple[Tensor, Tensor]:
        """The condition's states [B, L, D], zero where masked, and which there are [B, L]."""
        if condition.kind == "sequence":
            return self._sequence(condition, self._nothing(condition, batch_size) if given is None else given)
        if condition.kind == "number":
            return self._number(condition, given, batch_size)
        assert self.table is not None
        offset = self.offsets[condition.name]
        if given is None:
            rows = torch.full((batch_size, 1), HIDDEN + offset, device=self.table.weight.device)
            return self.table(rows), torch.ones_like(rows, dtype=torch.bool)
        if condition.kind == "label":
            states = self.table(torch.where(given.mask, given.values, HIDDEN) + offset)
        else:
            states = self._tags(condition, given, offset)
        return states, torch.ones_like(given.mask)

    def _sequence(self, condition: Condition, given: Given) -> tuple[Tensor, Tensor]:
        values, mask = given.values.to(self.like.dtype), given.mask
        if condition.null == "first":
            first = values.new_zeros(condition.width)
            first[0] = 1
            values = torch.where(mask[..., None], values, first)
        states = self.projections[condition.name](values) if condition.project else values
        return (states if condition.null == "first" else states * mask[..., None]), mask

    def _number(self, condition: Condition, given: Given | None, batch_size: int) -> tuple[Tensor, Tensor]:
        """One state [B, 1, D], zeros where the number is hidden."""
        if given is None:
            zeros = self.like.new_zeros(batch_size, 1)
            given = Given(zeros, torch.zeros_like(zeros, dtype=torch.bool))
        states = self.numbers[condition.name](given.values)[:, None]
        return states * given.mask[..., None], torch.ones_like(given.mask)

    def _nothing(self, condition: Condition, batch_size: int) -> Given:
        """A sequence hidden for all clips, as short as it can be."""
        # Steps that nobody sees would still move the positions of those after them.
        is_seen = condition.fuse != "prepend" or condition.attend_padding
        length = condition.length or (1 if is_seen else 0)
        mask = torch.zeros(batch_size, length, dtype=torch.bool, device=self.like.device)
        return Given(self.like.new_zeros(batch_size, length, condition.width), mask)

    def _tags(self, condition: Condition, given: Given, offset: int) -> Tensor:
        """The mean of the embeddings of a clip's tags [B, 1, D]; without any, what hidden looks like."""
        assert self.table is not None
        weight = self.table.weight[offset : offset + condition.num_rows]
        present = given.values * given.mask
        count = present.sum(1, keepdim=True)
        weights = F.pad(present / count.clamp(min=1), (1, 0))
        weights[:, :1] += (count == 0).to(weights.dtype)
        return (weights.to(weight.dtype) @ weight)[:, None]


class NumberEmbedding(nn.Module):
    """A number on a scale as a vector: random Fourier features, which are trained, and a linear layer.

    As the timing of Stable Audio (arXiv:2402.04825, sec. 2.2), whose weights it can hold.
    """

    def __init__(self, maximum: float, width: int, dim: int) -> None:
        super().__init__()
        self.maximum = maximum
        self.frequencies = nn.Parameter(torch.randn(width // 2))
        self.projection = nn.Linear(width + 1, dim)

    def forward(self, values: Tensor) -> Tensor:
        """Numbers [B, 1] from 0 to `maximum` to [B, D]; those beyond count as the nearest end."""
        scaled = (values.to(self.projection.weight.dtype) / self.maximum).clamp(0, 1)
        angles = 2 * torch.pi * scaled * self.frequencies
        embedded: Tensor = self.projection(torch.cat([scaled, angles.sin(), angles.cos()], dim=1))
        return embedded


def _joined(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """States one after another, and their masks where there are any."""
    states = torch.cat([part for part, _ in parts], dim=1)
    if all(mask is None for _, mask in parts):
        return states, None
    masks = [
        torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) if mask is None else mask
        for part, mask in parts
    ]
    return states, torch.cat(masks, dim=1)
