"""What a language model is told about a clip: its labels, as rows of embedding tables.

Each label has a table of its own, in which row 0 means *hidden* and rows 1 to n are the values met in
training. Hidden labels are what classifier-free guidance steers away from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from ..core.errors import UserError
from ..tokenize.corpus import Label

HIDDEN = 0


@dataclass(frozen=True)
class LabelVocabulary:
    """The labels that a model knows, in the order of its tables, and the values of each."""

    values: Mapping[str, Sequence[Label]] = field(default_factory=dict)
    """Label → distinct values; the value at index i has row i + 1 of the label's table."""

    @classmethod
    def from_rows(cls, names: Sequence[str], rows: Sequence[Mapping[str, Label]]) -> Self:
        """The sorted values of the labels `names` in `rows` (one mapping a clip).

        Raises `UserError` for a label that the rows do not have, whose values mix numbers and text, or are
        fractions or tags.
        """
        values: dict[str, Sequence[Label]] = {}
        for name in names:
            missing = next((row for row in rows if name not in row), None)
            if missing is not None or not rows:
                known = _listed(sorted(missing)) if missing else "nothing"
                raise UserError(f"the clips have no label {name!r}: they have {known}")
            other = next((row[name] for row in rows if not isinstance(row[name], int | str)), None)
            if other is not None:
                kind = "fractions" if isinstance(other, float) else "any number of tags a clip"
                raise UserError(
                    f"label {name!r} has {kind}: a model can be told labels that are one whole number or one"
                    " name a clip"
                )
            found = {row[name] for row in rows}
            numbers = sorted(value for value in found if isinstance(value, int))
            texts = sorted(value for value in found if isinstance(value, str))
            if numbers and texts:
                raise UserError(
                    f"label {name!r} mixes numbers and text ({numbers[0]} and {texts[0]!r}): use one of them"
                )
            values[name] = numbers or texts
        return cls(values)

    @property
    def names(self) -> list[str]:
        """The labels, in the order of the columns that `encode` returns."""
        return list(self.values)

    @property
    def table_sizes(self) -> list[int]:
        """Rows of each label's table: its values and one for hidden."""
        return [len(values) + 1 for values in self.values.values()]

    def index(self, name: str, value: Label) -> int:
        """The row (1 to n) of a value in the table of a label; raises `UserError` if either is unknown."""
        self._check_name(name)
        known = self.values[name]
        if value not in known:
            raise UserError(
                f"unknown value {value!r} for label {name!r}{_suggestion(value, known)}:"
                f" known are {_listed(known)}"
            )
        return list(known).index(value) + 1

    def encode(self, labels: Mapping[str, Sequence[Label]]) -> Tensor:
        """Lists of values, one a clip, for each label, as table rows: [B, num_conditions] int64.

        A vocabulary without labels gives [0, 0]. Raises `UserError` for an unknown or missing label, an
        unknown value, or lists of unequal length.
        """
        for name in labels:
            self._check_name(name)
        for name in self.names:
            if name not in labels:
                raise UserError(f"label {name!r} is missing: this model needs {_listed(self.names)}")
        lengths = {name: len(values) for name, values in labels.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"every label needs one value a clip, but their numbers differ: {lengths}")
        shape = max(lengths.values(), default=0), len(self.names)
        rows = torch.empty(shape, dtype=torch.int64)
        for i, name in enumerate(self.names):
            rows[:, i] = torch.tensor([self.index(name, value) for value in labels[name]], dtype=torch.int64)
        return rows

    def _check_name(self, name: str) -> None:
        if not self.values:
            raise UserError(f"unknown label {name!r}: this model was trained without labels")
        if name not in self.values:
            raise UserError(
                f"unknown label {name!r}{_suggestion(name, self.names)}: known are {_listed(self.names)}"
            )


# One coin a clip: a coin a batch would make whole steps conditional or whole steps unconditional.
def drop_conditions(labels: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide all labels of a clip together, each clip with `probability`: [B, num_conditions] to the same.

    Classifier-free guidance, arXiv:2207.12598, algorithm 1. The coins are drawn on the generator's device.
    """
    device = labels.device if generator is None else generator.device
    keep = torch.rand(labels.shape[0], 1, generator=generator, device=device) >= probability
    return torch.where(keep.to(labels.device), labels, HIDDEN)


def _listed(values: Sequence[Label], at_most: int = 12) -> str:
    """The values for an error message; a long list is cut."""
    shown = ", ".join(repr(value) for value in values[:at_most])
    return shown if len(values) <= at_most else f"{shown} and {len(values) - at_most} more"


def _suggestion(value: Label, known: Sequence[Label]) -> str:
    """`, did you mean 'x'?` in brackets where `value` looks like one of the `known` strings."""
    texts = [other for other in known if isinstance(other, str)]
    close = difflib.get_close_matches(value, texts, n=1) if isinstance(value, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""
