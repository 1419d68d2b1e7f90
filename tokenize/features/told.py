"""What people say of the clips that they want, as the inputs of a generator: labels, tags, texts, recordings.

Encoders of texts and recordings are those that the model's own configuration describes.

Shapes: B clips, C channels, N samples, L states of a sequence, E their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...core.audio import AudioError, load_audio
from ...core.conditions import Condition, Conditions
from ...core.errors import UserError
from ...core.label import Label
from .feature import AudioEncoder, FeatureInfo, TextEncoder, load_feature_from_info

ClipInputs = dict[str, list[Label | Tensor | None]]
"""Condition → one value a clip; None hides it."""


@dataclass(frozen=True)
class Told:
    """What is said of some clips. A list with fewer values than clips is gone through again and again."""

    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Condition → values as people write them."""
    tags: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Condition → sets of tags."""
    texts: Sequence[str] = ()
    melody: Path | None = None
    """A recording whose melody all clips follow."""
    style: Path | None = None
    """A recording whose sound all clips have."""

    @property
    def num_clips(self) -> int:
        """As many as there are different things to say; at least 1."""
        lists = [*self.labels.values(), *self.tags.values(), self.texts]
        return max(1, *(len(values) for values in lists))

    def inputs(
        self, conditions: Conditions, num_clips: int, heard_s: float, device: torch.device
    ) -> ClipInputs:
        """What a generator takes; what is not said is left out.

        A melody is cut to `heard_s` seconds: to the clips' length, or to that of the model's window, as later
        windows hear it again. Raises `UserError` for what the model cannot be told, and for recordings and
        encoders that cannot be used.
        """
        found = self._words(conditions, num_clips)
        for kind, value in self._encoded():
            condition, info = _feature(conditions, kind)
            if isinstance(value, Path):
                _check_there(value, kind)
            encoder = load_feature_from_info(info, device)
            if isinstance(encoder, TextEncoder):
                assert isinstance(value, tuple)
                encoded = encoder.encode_text(value)
            else:
                assert isinstance(value, Path)
                encoded = [_encode_recording(encoder, value, kind, heard_s)]
            found[condition.name] = _in_turn(encoded, num_clips, kind)
        return found

    def notes(self, conditions: Conditions, num_clips: int) -> list[dict[str, Any]]:
        """What `samples.jsonl` says of each clip; what is not said is left out."""
        words = self._words(conditions, num_clips)
        recordings = {"melody": self.melody, "style": self.style}
        shared = {name: str(path) for name, path in recordings.items() if path is not None}
        return [
            {"labels": {name: values[clip] for name, values in words.items()}}
            | ({"text": self.texts[clip % len(self.texts)]} if self.texts else {})
            | shared
            for clip in range(num_clips)
        ]

    def _encoded(self) -> Iterator[tuple[Literal["text", "melody", "style"], tuple[str, ...] | Path]]:
        if self.texts:
            yield "text", tuple(self.texts)
        if self.melody is not None:
            yield "melody", self.melody
        if self.style is not None:
            yield "style", self.style

    def _words(self, conditions: Conditions, num_clips: int) -> ClipInputs:
        found: ClipInputs = {}
        for name, values in self.labels.items():
            condition = _of_kind(conditions, name, "label", "number")
            found[name] = _in_turn([_value(condition, value) for value in values], num_clips, name)
        for name, sets in self.tags.items():
            condition = _of_kind(conditions, name, "tags")
            for tag in (tag for tags in sets for tag in tags):
                condition.row(tag)
            found[name] = _in_turn([tuple(tags) for tags in sets], num_clips, name)
        if self.texts:
            _in_turn(self.texts, num_clips, "text")
        return found


def told_by_options(
    conditions: Conditions,
    label: Sequence[str],
    tags: Sequence[str],
    text: Sequence[str],
    melody: Path | None,
    style: Path | None,
) -> Told:
    """What the options `--label NAME=VALUE`, `--tags NAME=TAG,TAG` and the others say.

    Raises `UserError` for words that are not of this form.
    """
    labels: dict[str, list[str]] = {}
    for word in label:
        name, value = _pair("label", word)
        labels.setdefault(name, []).extend(split_values(conditions, name, value))
    sets: dict[str, list[list[str]]] = {}
    for word in tags:
        name, value = _pair("tags", word)
        sets.setdefault(name, []).append([tag.strip() for tag in value.split(",") if tag.strip()])
    return Told(labels, sets, tuple(text), melody, style)


def _pair(option: str, word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (name and equals and value):
        raise UserError(f"--{option} {word}: NAME=VALUE is needed")
    return name, value


def split_values(conditions: Conditions, name: str, text: str) -> list[str]:
    """The values in `60,62` as a list; text that is itself a value of the label, commas or not, is one."""
    if name in conditions.names and text in conditions[name].values:
        return [text]
    return [value.strip() for value in text.split(",")]


def _of_kind(conditions: Conditions, name: str, *kinds: Literal["label", "tags", "number"]) -> Condition:
    """The condition `name`; raises `UserError` that says how it is told if it is of another kind."""
    condition = conditions[name]
    if condition.kind not in kinds:
        value = f"--label {name}=VALUE"
        how = {"label": value, "number": value, "tags": f"--tags {name}=TAG,TAG"}
        kind_of = str(condition.feature["kind"]) if condition.feature else ""
        option = how.get(condition.kind) or (f"--{kind_of}" if kind_of else "tensors, in Python")
        raise UserError(f"condition {name!r} is not of kind {kinds[0]}: give it by {option}")
    return condition


def _value(condition: Condition, value: str) -> Label:
    """A value as the model knows it: numbers are written as numbers."""
    if condition.kind == "number":
        try:
            return float(value)
        except ValueError as error:
            raise UserError(f"--label {condition.name}={value}: a number is needed") from error
    for known in condition.values:
        if str(known) == value:
            return known
    condition.row(value)  # says what there is
    raise AssertionError


def _in_turn(values: Sequence[Any], num_clips: int, name: str) -> list[Any]:
    if len(values) > num_clips:
        raise UserError(
            f"{len(values)} values of {name!r} for {num_clips} clip{'s' if num_clips > 1 else ''}:"
            " ask for more clips"
        )
    return [values[i % len(values)] for i in range(num_clips)]


def _feature(conditions: Conditions, kind: str) -> tuple[Condition, FeatureInfo]:
    """The condition that takes texts, or melodies, or styles; raises `UserError` unless there is one."""
    found = [c for c in conditions if c.feature is not None and c.feature.get("kind") == kind]
    if len(found) != 1:
        names = ", ".join(conditions.names) or "none"
        several = f"{len(found)} conditions take a {kind}" if found else f"no condition takes a {kind}"
        raise UserError(f"this model cannot be told a {kind}: {several}, its conditions are: {names}")
    condition = found[0]
    assert condition.feature is not None
    return condition, FeatureInfo.from_json(condition.feature, f"condition {condition.name!r} of the model")


def _encode_recording(encoder: TextEncoder | AudioEncoder, path: Path, kind: str, heard_s: float) -> Tensor:
    """[L, E] of a file; of a feature that follows it in time, what belongs to its first `heard_s` seconds."""
    assert isinstance(encoder, AudioEncoder)
    samples = load_recording(path, encoder.sample_rate, encoder.channels, kind)
    encoded = encoder.encode_audio(torch.from_numpy(samples)[None], encoder.sample_rate)[0]
    rate = encoder.info.frame_rate
    return encoded if rate is None else encoded[: max(1, round(heard_s * rate))]


def _check_there(path: Path, what: str) -> None:
    if not path.is_file():
        raise UserError(f"--{what}: there is no file {path}")


def load_recording(path: Path, sample_rate: int, channels: int, what: str) -> np.ndarray:
    """Samples [C, N] of the file that the option `--what` names; raises `UserError` if it cannot be used."""
    _check_there(path, what)
    try:
        return load_audio(path, sample_rate, channels)
    except AudioError as error:
        raise UserError(f"--{what}: {path} cannot be used: {error}") from error
