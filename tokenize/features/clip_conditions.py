"""Conditions of stored clips: labels, tags and features as tensors, crop by crop.

The training loop moves flat dictionaries of tensors; conditions travel in them as `values/NAME` and
`mask/NAME`.

Shapes: B batch, T frames, L states of a feature, E their width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...core.conditions import Condition, Conditions, Given, GivenConditions, label_condition
from ...core.errors import UserError
from ...core.job import Batch
from ...core.label import Label
from ...core.schema_conditions import ModelCondition
from ..store import TokenSplit, TokenStore

_VALUES, _MASK = "values/", "mask/"

SECONDS_START, SECONDS_TOTAL = "seconds_start", "seconds_total"
"""Numbers that every clip has: where a crop begins, and how long the clip is."""

_NUMBER_WIDTH = 256  # of the Fourier features, as Stable Audio has


def to_batch(given: GivenConditions) -> Batch:
    """Conditions as flat entries of a batch."""
    values = {_VALUES + name: one.values for name, one in given.items()}
    return values | {_MASK + name: one.mask for name, one in given.items()}


def from_batch(batch: Batch) -> GivenConditions:
    """Undo `to_batch`; other entries are passed over."""
    names = [key.removeprefix(_VALUES) for key in batch if key.startswith(_VALUES)]
    return {name: Given(batch[_VALUES + name], batch[_MASK + name]) for name in names}


def conditions_of(store: TokenStore, split: TokenSplit, wanted: Sequence[ModelCondition]) -> Conditions:
    """What a recipe wants the model to be told: the labels' values are those that occur in `split`.

    Raises `UserError` for a name that is neither a label column nor a feature of the store, and for labels
    that are no numbers where numbers are wanted.
    """
    found = []
    for one in wanted:
        info = store.features.get(one.name)
        if one.maximum is not None or one.name in (SECONDS_START, SECONDS_TOTAL):
            if info is not None or one.length is not None:
                raise UserError(f"condition '{one.name}' is a number: it is no feature and has no length")
            maximum = one.maximum or float(split.num_samples.max()) / store.info.sample_rate
            found.append(Condition(one.name, "number", one.fuse, width=_NUMBER_WIDTH, maximum=maximum))
        elif info is None:
            if one.length is not None:
                raise UserError(f"condition '{one.name}' is a label and has no length: remove that setting")
            found.append(label_condition(one.name, split.column(one.name), one.fuse))
        else:
            found.append(
                Condition(
                    one.name, "sequence", one.fuse, width=info.dim, length=one.length, feature=info.to_json()
                )
            )
    return Conditions(tuple(found))


class ClipConditions:
    """What a model is told of crops of `num_frames` frames from the clips of a split."""

    def __init__(self, store: TokenStore, split: TokenSplit, conditions: Conditions, num_frames: int) -> None:
        self.split = split
        self.num_frames = num_frames
        self.conditions = conditions
        self.latent_dim = store.info.latent_dim
        self._frame_rate = store.info.frame_rate
        self._feature_rates = {
            name: store.features[name].frame_rate for name in conditions.names if name in store.features
        }
        self._mean_lengths: dict[str, int] = {}
        self._sample_rate = store.info.sample_rate
        self._labels = {
            c.name: split.column(c.name)
            for c in conditions
            if c.kind != "sequence" and c.name not in (SECONDS_START, SECONDS_TOTAL)
        }

    def given(self, crops: Sequence[tuple[int, int]]) -> GivenConditions:
        """The conditions of (clip, first frame) pairs."""
        inputs: dict[str, list[object]] = {}
        for condition in self.conditions:
            name = condition.name
            if condition.kind == "sequence":
                inputs[name] = [self._feature(name, clip, start) for clip, start in crops]
            elif condition.kind == "number":
                inputs[name] = [self._number(condition, clip, start) for clip, start in crops]
            else:
                inputs[name] = [self._value(condition, clip) for clip, _ in crops]
        return self.conditions.encode(inputs) if crops else {}  # type: ignore[arg-type]

    def _number(self, condition: Condition, clip: int, start: int) -> float:
        """A clip's number, at most the model's maximum."""
        assert condition.maximum is not None
        if condition.name == SECONDS_START:
            number: object = start / self._frame_rate
        elif condition.name == SECONDS_TOTAL:
            number = float(self.split.num_samples[clip]) / self._sample_rate
        else:
            number = self._labels[condition.name][clip]
        if not isinstance(number, int | float):
            raise UserError(
                f"condition '{condition.name}' is told as a number, but a clip has {number!r}:"
                " remove `maximum`"
            )
        return min(max(float(number), 0.0), condition.maximum)

    def _value(self, condition: Condition, clip: int) -> Label:
        """A clip's label, or those of its tags that occur in training."""
        value = self._labels[condition.name][clip]
        return tuple(tag for tag in value if tag in condition.values) if isinstance(value, tuple) else value

    def _feature(self, name: str, clip: int, start: int) -> Tensor:
        """[L, E] of a clip; of a feature that follows it in time, the part that belongs to the crop."""
        rate = self._feature_rates[name]
        if rate is None:
            found = self.split.feature(name, clip)
        else:
            per_frame = rate / self._frame_rate
            length = max(1, round(self.num_frames * per_frame))
            found = self.split.feature(name, clip, round(start * per_frame), length)
        return torch.from_numpy(found.astype(np.float32))

    def num_states(self, num_frames: int) -> dict[str, int]:
        """How many vectors a crop of `num_frames` has of each sequence among the conditions.

        Of sequences of any length, such as texts, it is the mean over some of the clips.
        """
        found = {}
        for condition in self.conditions:
            if condition.kind != "sequence":
                continue
            rate = self._feature_rates[condition.name]
            if condition.length is not None:
                found[condition.name] = condition.length
            elif rate is not None:
                found[condition.name] = max(1, round(num_frames * rate / self._frame_rate))
            else:
                found[condition.name] = self._mean_states(condition.name)
        return found

    def _mean_states(self, name: str, at_most: int = 64) -> int:
        if name not in self._mean_lengths:
            some = np.linspace(0, len(self.split) - 1, min(at_most, len(self.split))).round().astype(int)
            lengths = [len(self.split.feature(name, clip)) for clip in some.tolist()]
            self._mean_lengths[name] = round(sum(lengths) / len(lengths))
        return self._mean_lengths[name]

    def known(self, clips: Iterable[int]) -> list[int]:
        """Those of some clips whose labels all have values that the model has met."""
        labels = [condition for condition in self.conditions if condition.kind == "label"]
        return [clip for clip in clips if all(self._labels[c.name][clip] in c.values for c in labels)]

    def labels(self, clip: int) -> dict[str, Label]:
        """What the model is told of a clip in words and numbers."""
        return {
            c.name: self._number(c, clip, 0) if c.kind == "number" else self._value(c, clip)
            for c in self.conditions
            if c.kind != "sequence"
        }
