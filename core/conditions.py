"""What a model is told about a clip: labels, tags, numbers, and sequences of vectors such as encoded text.

A `Condition` says what one of them is and how it enters the model; together they are the model's
`Conditions`, which travel in its `config.json`. `Conditions.encode` turns what people write (`60`, `"organ"`,
`("slow", "loud")`, or encoded text) into tensors, `Given`.

A condition can be *hidden* for a clip: that is what the model falls back to where it is told nothing, and
what classifier-free guidance steers away from.

Shapes: B batch, L states of a sequence, E width of a state.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from .errors import UserError
from .label import Label

HIDDEN = 0

Kind = Literal["label", "tags", "number", "sequence"]
Fuse = Literal["sum", "prepend", "cross"]
Null = Literal["zeros", "first"]


@dataclass(frozen=True)
class Condition:
    """One thing that a model is told about each clip."""

    name: str
    """A label column or a feature of the token store."""
    kind: Kind
    """One value a clip, any number of tags a clip, a number on a scale, or a sequence of vectors a clip."""
    fuse: Fuse = "sum"
    """Summed into every step, prepended to the sequence, or attended to by cross-attention."""
    values: tuple[Label, ...] = ()
    """Of labels and tags: those met in training; value i has row i + 1 of the embedding table."""
    width: int = 0
    """Of a sequence: E; of a number: how many sines and cosines stand for it, an even number."""
    length: int | None = None
    """Of a sequence: every clip's is padded or cut to this many states; None pads to the batch's longest."""
    attend_padding: bool = False
    """Of a sequence: whether padding is attended to; MusicGen's melody models do that."""
    repeat: bool = False
    """Of a sequence with a `length`: shorter ones are repeated up to it, not padded."""
    null: Null = "zeros"
    """Of a sequence: what stands in padding and for a hidden one: `zeros` after the projection, or, before
    it, the unit vector along the `first` dimension, which is what MusicGen's melody models hear in silence.
    """
    project: bool = True
    """Of a sequence: whether a linear layer takes its vectors to the model's width; else they have it."""
    feature: Mapping[str, Any] | None = None
    """Of a sequence: the feature that it comes from, as the token store describes it."""
    maximum: float | None = None
    """Of a number: the scale goes from 0 to this."""

    def __post_init__(self) -> None:
        if self.kind == "number" and (
            not self.maximum or self.maximum <= 0 or self.width < 2 or self.width % 2
        ):
            raise UserError(
                f"condition {self.name!r} is a number and needs a positive maximum and an even width"
            )
        if self.kind == "sequence" and self.width < 1:
            raise UserError(f"condition {self.name!r} is a sequence and needs the width of its vectors")
        if self.null == "first" and not (self.attend_padding and self.fuse == "prepend"):
            raise UserError(
                f"condition {self.name!r} has null 'first', which is seen only where padding is:"
                " it must be prepended with attend_padding"
            )
        if self.repeat and self.length is None:
            raise UserError(f"condition {self.name!r} is repeated and needs the length up to which")
        if self.has_rows and not self.values:
            raise UserError(f"condition {self.name!r} has no values")

    @property
    def has_rows(self) -> bool:
        """Whether its values are rows of an embedding table."""
        return self.kind in ("label", "tags")

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table: the values and one for hidden; 0 for a number or a sequence."""
        return len(self.values) + 1 if self.has_rows else 0

    def row(self, value: Label) -> int:
        """The row (1 to n) of a label's value, or of a tag; raises `UserError` if the model never met it."""
        if value not in self.values:
            what = "tag" if self.kind == "tags" else "value"
            raise UserError(
                f"unknown {what} {value!r} for {'label' if what == 'value' else 'tags'} {self.name!r}"
                f"{_suggestion(value, self.values)}: known are {_listed(self.values)}"
            )
        return self.values.index(value) + 1


@dataclass
class Given:
    """One condition of B clips. Hidden is what `mask` hides."""

    values: Tensor
    """label: [B, 1] int64, rows of the table; tags: [B, n] float32, 1 for each tag that a clip has; number:
    [B, 1] float32, 0 to `maximum`; sequence: [B, L, E] float32."""
    mask: Tensor
    """label, tags, number: [B, 1] bool, False where hidden; sequence: [B, L] bool, False for padding."""

    @property
    def batch_size(self) -> int:
        """B."""
        return self.values.shape[0]

    def hide(self, keep: Tensor) -> Given:
        """The same, hidden for the clips where `keep` [B] bool is False."""
        return Given(self.values, self.mask & keep[:, None])

    def to(self, device: torch.device) -> Given:
        """The same on `device`."""
        return Given(self.values.to(device), self.mask.to(device))


register_dataclass(Given, field_names=["values", "mask"])

GivenConditions = dict[str, Given]
"""Condition → what is given; one that is not there is hidden for all clips."""


@dataclass(frozen=True)
class Conditions:
    """All that a model is told, in the order of its tables."""

    all: tuple[Condition, ...] = ()
    by_name: Mapping[str, Condition] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {condition.name: condition for condition in self.all}
        if len(by_name) < len(self.all):
            raise UserError(f"two conditions have the same name: {[c.name for c in self.all]}")
        object.__setattr__(self, "by_name", by_name)

    def __iter__(self) -> Iterator[Condition]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, name: str) -> Condition:
        """The condition `name`; raises `UserError` if the model has none of that name."""
        if not self.all:
            raise UserError(f"unknown condition {name!r}: this model was trained without conditions")
        if name not in self.by_name:
            raise UserError(
                f"unknown condition {name!r}{_suggestion(name, self.names)}: known are {_listed(self.names)}"
            )
        return self.by_name[name]

    @property
    def names(self) -> list[str]:
        """The conditions' names, in order."""
        return [condition.name for condition in self.all]

    def fused_by(self, fuse: Fuse) -> list[Condition]:
        """The conditions that enter the model in this way."""
        return [condition for condition in self.all if condition.fuse == fuse]

    def encode(
        self, inputs: Mapping[str, Sequence[Label | Tensor | None]], *, partial: bool = False
    ) -> GivenConditions:
        """Lists of one value a clip, for each condition, as tensors.

        A label's value is a whole number or a name, tags are a tuple of names, a number is from 0 to its
        `maximum`, a sequence is a tensor [L, E]; None hides the condition for that clip. With `partial`,
        conditions may be left out, which hides them.

        Raises `UserError` for an unknown or missing condition, an unknown value or tag, a sequence of another
        width, or lists that are none or of unequal length.
        """
        for name in inputs:
            _ = self[name]
        missing = [name for name in self.names if name not in inputs]
        if missing and not partial:
            raise UserError(f"condition {missing[0]!r} is missing: this model needs {_listed(self.names)}")
        for name, values in inputs.items():
            if isinstance(values, str) or not isinstance(values, Sequence | Tensor | np.ndarray):
                raise UserError(f"condition {name!r} needs a list with one value a clip, not {values!r}")
        lengths = {name: len(values) for name, values in inputs.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"every condition needs one value a clip, but their numbers differ: {lengths}")
        return {name: _encode(self.by_name[name], values) for name, values in inputs.items()}

    def check(self, given: GivenConditions) -> None:
        """Raise `UserError` if tensors do not have the form of these conditions."""
        for name, one in given.items():
            condition = self[name]
            widths = {"label": 1, "tags": len(condition.values), "number": 1, "sequence": condition.width}
            last = widths[condition.kind]
            num_dims = 3 if condition.kind == "sequence" else 2
            if one.values.ndim != num_dims or one.values.shape[-1] != last:
                form = "[B, L, {}]" if condition.kind == "sequence" else "[B, {}]"
                raise UserError(
                    f"condition {name!r} must have the shape {form.format(last)},"
                    f" not {list(one.values.shape)}"
                )
            rows = condition.num_rows
            if condition.kind == "label" and bool(((one.values < 0) | (one.values >= rows)).any()):
                raise UserError(f"condition {name!r} must hold rows of a table of {rows}, 0 for hidden")

    def to_list(self) -> list[dict[str, Any]]:
        """As JSON values."""
        return [
            {f.name: getattr(condition, f.name) for f in dataclasses.fields(condition)}
            | {"values": list(condition.values)}
            for condition in self.all
        ]

    @classmethod
    def from_list(cls, found: Sequence[Mapping[str, Any]]) -> Self:
        """Undo `to_list`; raises `UserError` if it is something else."""
        try:
            return cls(tuple(Condition(**{**one, "values": tuple(one["values"])}) for one in found))
        except (TypeError, KeyError) as error:
            raise UserError(f"the model's conditions cannot be read: {error}") from error


def label_condition(name: str, found: Sequence[Label], fuse: Fuse = "sum") -> Condition:
    """A condition over the sorted values `found`, one a clip: names, whole numbers, or tuples of tags.

    Raises `UserError` if there are none, or if they mix numbers and text or are fractions.
    """
    if any(isinstance(value, tuple) for value in found):
        tags = {tag for value in found if isinstance(value, tuple) for tag in value}
        if not tags:
            raise UserError(f"no clip has any tag in {name!r}: leave that condition out")
        return Condition(name, "tags", fuse, tuple(sorted(tags)))
    if any(isinstance(value, float) for value in found):
        raise UserError(
            f"label {name!r} has fractions: a model can be told whole numbers, names and tags"
            " (round them, or name ranges, in the corpus)"
        )
    values = set(found)
    numbers = sorted(value for value in values if isinstance(value, int))
    texts = sorted(value for value in values if isinstance(value, str))
    if numbers and texts:
        raise UserError(
            f"label {name!r} mixes numbers and text ({numbers[0]} and {texts[0]!r}): use one of them"
        )
    if not values:
        raise UserError(f"there are no clips to learn the values of label {name!r} from")
    return Condition(name, "label", fuse, tuple(numbers or texts))


def pad_sequences(sequences: Sequence[Tensor], width: int, length: int | None) -> Given:
    """Sequences [L, E] of different length as one condition [B, L, E], cut or padded to `length`."""
    cut = [sequence[:length] for sequence in sequences]
    longest = length if length is not None else max([1, *(len(sequence) for sequence in cut)])
    values = torch.zeros(len(cut), longest, width)
    mask = torch.zeros(len(cut), longest, dtype=torch.bool)
    for i, sequence in enumerate(cut):
        values[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = True
    return Given(values, mask)


def hide_all(given: GivenConditions) -> GivenConditions:
    """The same conditions, hidden for all clips."""
    return {name: Given(one.values, torch.zeros_like(one.mask)) for name, one in given.items()}


def join(*parts: GivenConditions) -> GivenConditions:
    """The clips of one part after another; all have the same conditions."""
    return {
        name: Given(
            torch.cat([part[name].values for part in parts]), torch.cat([part[name].mask for part in parts])
        )
        for name in parts[0]
    }


def select(given: GivenConditions, rows: slice | Tensor) -> GivenConditions:
    """Some of the clips; by a tensor of their numbers, also more than once."""
    return {name: Given(one.values[rows], one.mask[rows]) for name, one in given.items()}


# One coin a clip: a coin a batch would make whole steps conditional or whole steps unconditional.
def condition_coins(batch_size: int, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Which clips keep their conditions: [B] bool, each False with `probability`.

    Classifier-free guidance, arXiv:2207.12598, algorithm 1. The coins are drawn on the generator's device.
    """
    device = None if generator is None else generator.device
    return torch.rand(batch_size, generator=generator, device=device) >= probability


def _encode(condition: Condition, values: Sequence[Label | Tensor | None]) -> Given:
    shown = torch.tensor([[value is not None] for value in values], dtype=torch.bool).reshape(-1, 1)
    if condition.kind == "sequence":
        sequences = [_states(condition, value) for value in values]
        if condition.repeat and condition.length is not None:
            sequences = [_repeated(sequence, condition.length) for sequence in sequences]
        return pad_sequences(sequences, condition.width, condition.length)
    if condition.kind == "label":
        rows = [HIDDEN if value is None else condition.row(_as_label(value)) for value in values]
        return Given(torch.tensor(rows, dtype=torch.int64).reshape(-1, 1), shown)
    if condition.kind == "number":
        numbers = [0.0 if value is None else _number(condition, value) for value in values]
        return Given(torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1), shown)
    present = torch.zeros(len(values), len(condition.values))
    for i, value in enumerate(values):
        if isinstance(value, str | int | float):
            raise UserError(f"tags {condition.name!r} must be a list of tags a clip, not {value!r}")
        for tag in () if value is None else value:
            present[i, condition.row(tag) - 1] = 1
    return Given(present, shown)


def _repeated(sequence: Tensor, length: int) -> Tensor:
    """[L, E] over and over, to at least `length` vectors; nothing stays nothing."""
    return sequence.repeat(math.ceil(length / len(sequence)), 1) if len(sequence) else sequence


def _states(condition: Condition, value: Any) -> Tensor:
    """A clip's sequence [L, E]; without vectors for None."""
    if value is None:
        return torch.zeros(0, condition.width)
    found = torch.as_tensor(value) if isinstance(value, Tensor | np.ndarray) else None
    if found is None or found.ndim != 2 or found.shape[1] != condition.width:
        raise UserError(
            f"condition {condition.name!r} needs vectors [L, {condition.width}] for this model,"
            f" not {repr(value) if found is None else list(found.shape)}"
        )
    return found.float()


def _number(condition: Condition, value: Any) -> float:
    """A clip's number; raises `UserError` for what is none, or not on the scale."""
    assert condition.maximum is not None
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UserError(f"condition {condition.name!r} needs a number, not {value!r}")
    if not 0 <= number <= condition.maximum:
        raise UserError(
            f"condition {condition.name!r} goes from 0 to {condition.maximum:g} in this model, which does not"
            f" reach {number:g}"
        )
    return float(number)


def _as_label(value: Any) -> Label:
    """NumPy's and torch's whole numbers as Python's."""
    return value.item() if hasattr(value, "item") else value  # type: ignore[no-any-return]


def _listed(values: Sequence[Label], at_most: int = 12) -> str:
    """The values for an error message; a long list is cut."""
    shown = ", ".join(repr(value) for value in values[:at_most])
    return shown if len(values) <= at_most else f"{shown} and {len(values) - at_most} more"


def _suggestion(value: Label, known: Sequence[Label]) -> str:
    """`, did you mean 'x'?` in brackets where `value` looks like one of the `known` strings."""
    texts = [other for other in known if isinstance(other, str)]
    close = difflib.get_close_matches(value, texts, n=1) if isinstance(value, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""
