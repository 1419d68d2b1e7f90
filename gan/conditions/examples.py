"""What some training clips are told, kept in a model's configuration for clips that are told less.

A generator is told everything of every clip in training, so it must be later. What nobody says is taken
together from one training clip: a pitch, its brightness and its tokens belong to each other.

Shapes: B clips, L states of a sequence, V values that a state can have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.conditions import Condition, Conditions, Given, GivenConditions
from ...core.errors import UserError
from ...core.label import Label
from ...tokenize.features.told import ClipInputs
from ..crops import some_clips
from .told import ClipTold

NUM_EXAMPLES = 64
"""So many clips are kept, from all over the training split."""

_ATTACK = 4  # of a sequence, one part in so many is the beginning of a note


@dataclass(frozen=True)
class Filled:
    """What clips are told, with nothing missing."""

    inputs: ClipInputs
    sources: list[str | None]
    """Of each clip, the training clip that the rest was taken from."""


def examples_of(
    told: ClipTold, conditions: Conditions, num_examples: int = NUM_EXAMPLES
) -> list[dict[str, Any]]:
    """What clips of the training split are told, as JSON values: `id`, and `told` by condition; of a sequence
    of ones among zeros, where the ones are.

    None for a model that is told nothing.
    """
    if not len(conditions):
        return []
    chosen = some_clips(told.split, num_examples)
    crops = [(clip, 0) for clip in chosen]
    _, given = told.read(crops)
    ids = told.split.column("id")
    sequences = {c.name: given[c.name].values.argmax(-1).tolist() for c in conditions if c.kind == "sequence"}
    return [
        {
            "id": str(ids[clip]),
            "told": words | {name: tokens[row] for name, tokens in sequences.items()},
        }
        for row, (clip, words) in enumerate(zip(chosen, told.said(crops, given), strict=True))
    ]


def fill_in(
    conditions: Conditions,
    examples: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Sequence[Label | Tensor | None]],
    num_clips: int,
    *,
    seed: int,
    first_clip: int = 0,
) -> Filled:
    """Add to what `inputs` say of `num_clips` clips all that they do not say, or say by None.

    It is that of an example, drawn by the seed and the clip's number among those that agree with most of the
    labels that are said. Raises `UserError` where something is missing and there are no examples, and for
    lists of another length.
    """
    short = next((name for name, values in inputs.items() if len(values) != num_clips), None)
    if short is not None:
        raise UserError(
            f"every condition needs one value a clip: {num_clips}, not {len(inputs[short])} of {short!r}"
        )
    rows = [
        {name: values[clip] for name, values in inputs.items() if values[clip] is not None}
        for clip in range(num_clips)
    ]
    sources: list[str | None] = [None] * num_clips
    for clip, row in enumerate(rows):
        missing = [one for one in conditions if one.name not in row]
        if not missing:
            continue
        if not examples:
            raise UserError(
                f"condition {missing[0].name!r} is missing: this model needs {', '.join(conditions.names)}"
            )
        best = _in_agreement(examples, {c.name: row[c.name] for c in conditions if c.name in row})
        drawn = np.random.default_rng([seed % 2**32, first_clip + clip]).integers(len(best))
        sources[clip] = str(best[drawn]["id"])
        for one in missing:
            row[one.name] = _value(one, best[drawn]["told"][one.name])
    return Filled({c.name: [row[c.name] for row in rows] for c in conditions}, sources)


def _in_agreement(
    examples: Sequence[Mapping[str, Any]], said: Mapping[str, Label | Tensor | None]
) -> list[Mapping[str, Any]]:
    """Those that have most of the said labels."""
    words = {name: value for name, value in said.items() if not isinstance(value, Tensor)}
    shared = [sum(one["told"][name] == value for name, value in words.items()) for one in examples]
    return [one for one, count in zip(examples, shared, strict=True) if count == max(shared)]


def _value(condition: Condition, found: Any) -> Label | Tensor:
    """As `Conditions.encode` takes it."""
    if condition.kind != "sequence":
        label: Label = found
        return label
    return F.one_hot(torch.tensor(found, dtype=torch.int64), condition.width).float()


def lengthened(given: Given, length: int, of: int | None = None) -> Given:
    """A sequence `[B, L, V]`, of which the first `of` states count, cut or drawn out to `length` states.

    A longer note begins as fast as a short one and lasts longer: the first quarter stays as it is, the other
    states follow each other more slowly, and none is left out.
    """
    states = given.values.shape[1] if of is None else of
    if length <= states:
        return Given(given.values[:, :length], given.mask[:, :length])
    attack = states // _ATTACK
    rest = torch.arange(length - attack) * (states - attack) // (length - attack) + attack
    places = torch.cat([torch.arange(attack), rest]).to(given.values.device)
    return Given(given.values[:, places], given.mask[:, places])


def all_lengthened(
    conditions: Conditions, given: GivenConditions, length: int, of: int | None = None
) -> GivenConditions:
    """`lengthened` of every sequence."""
    return {
        name: lengthened(one, length, of) if conditions[name].kind == "sequence" else one
        for name, one in given.items()
    }
