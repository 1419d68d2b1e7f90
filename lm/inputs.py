"""What people say of the clips that they want, as the inputs of a generator: labels, tags, texts, recordings.

Encoders of texts and recordings are those that the model's own configuration describes.

Shapes: B clips, C channels, N samples, K codebooks, T frames, L states of a sequence, E their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..core.audio import AudioError, load_audio
from ..core.errors import UserError
from ..tokenize.codec import Codec
from ..tokenize.corpus import Label
from ..tokenize.features.feature import AudioEncoder, FeatureInfo, TextEncoder, load_feature_from_info
from .conditions import Condition, Conditions
from .language_model import LMConfig

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

    def inputs(self, config: LMConfig, num_clips: int, num_frames: int, device: torch.device) -> ClipInputs:
        """What a generator takes, for clips of `num_frames` frames; what is not said is left out.

        A melody is cut to the clips' length, and to the model's window: later windows hear it again. Raises
        `UserError` for what the model cannot be told, and for recordings and encoders that cannot be used.
        """
        found = self._words(config.conditions, num_clips)
        for kind, value in self._encoded():
            condition, info = _feature(config.conditions, kind)
            if isinstance(value, Path):
                _check_there(value, kind)
            encoder = load_feature_from_info(info, device)
            if isinstance(encoder, TextEncoder):
                assert isinstance(value, tuple)
                encoded = encoder.encode_text(value)
            else:
                assert isinstance(value, Path)
                heard = min(num_frames, config.window_frames or num_frames) / config.frame_rate
                encoded = [_encode_recording(encoder, value, kind, heard)]
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
            condition = _of_kind(conditions, name, "label")
            found[name] = _in_turn([_label(condition, value) for value in values], num_clips, name)
        for name, sets in self.tags.items():
            condition = _of_kind(conditions, name, "tags")
            for tag in (tag for tags in sets for tag in tags):
                condition.row(tag)
            found[name] = _in_turn([tuple(tags) for tags in sets], num_clips, name)
        if self.texts:
            _in_turn(self.texts, num_clips, "text")
        return found


def split_values(conditions: Conditions, name: str, text: str) -> list[str]:
    """The values in `60,62` as a list; text that is itself a value of the label, commas or not, is one."""
    if name in conditions.names and text in conditions[name].values:
        return [text]
    return [value.strip() for value in text.split(",")]


def _of_kind(conditions: Conditions, name: str, kind: Literal["label", "tags"]) -> Condition:
    """The condition `name`; raises `UserError` that says how it is told if it is of another kind."""
    condition = conditions[name]
    if condition.kind != kind:
        how = {"label": f"--label {name}=VALUE", "tags": f"--tags {name}=TAG,TAG"}
        kind_of = str(condition.feature["kind"]) if condition.feature else ""
        option = how.get(condition.kind) or (f"--{kind_of}" if kind_of else "tensors, in Python")
        raise UserError(f"condition {name!r} is not of kind {kind}: give it by {option}")
    return condition


def _label(condition: Condition, value: str) -> Label:
    """A value as the model knows it: numbers are written as numbers."""
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
    samples = _load(path, encoder.sample_rate, encoder.channels, kind)
    encoded = encoder.encode_audio(torch.from_numpy(samples)[None], encoder.sample_rate)[0]
    rate = encoder.info.frame_rate
    return encoded if rate is None else encoded[: max(1, round(heard_s * rate))]


def _check_there(path: Path, what: str) -> None:
    if not path.is_file():
        raise UserError(f"--{what}: there is no file {path}")


def _load(path: Path, sample_rate: int, channels: int, what: str) -> np.ndarray:
    _check_there(path, what)
    try:
        return load_audio(path, sample_rate, channels)
    except AudioError as error:
        raise UserError(f"--{what}: {path} cannot be used: {error}") from error


def encode_prompt(
    path: Path, codec: Codec, config: LMConfig, num_frames: int, prompt_s: float | None = None
) -> Tensor:
    """The beginning of a recording as the prompt of clips of `num_frames` frames: codes [K, T0].

    Any rate and number of channels will do; the file is resampled and mixed to the codec's. T0 is a whole
    number of frames, but at least one: of a recording shorter than that, the rest of it is silence.

    Args:
        prompt_s: how much of the file; all of it if None.

    Raises `UserError` for a file that cannot be read, is silent or shorter than 50 ms, and for a prompt that
    leaves nothing to generate or does not fit the model's window.
    """
    samples = torch.from_numpy(_load(path, codec.sample_rate, codec.channels, "prompt"))
    duration_s = samples.shape[1] / codec.sample_rate
    if prompt_s is not None:
        if prompt_s <= 0:
            raise UserError(f"--prompt-seconds {prompt_s:g} must be positive")
        if prompt_s > duration_s:
            raise UserError(f"--prompt-seconds {prompt_s:g}: {path} lasts only {duration_s:.3g} s")
        duration_s = prompt_s
    num_samples = round(duration_s * codec.sample_rate)
    length = codec.num_frames(num_samples)
    if length >= num_frames:
        raise UserError(
            f"the prompt of {duration_s:.3g} s leaves nothing to generate, as the clip of"
            f" {num_frames / config.frame_rate:.3g} s begins with it: ask for a longer clip, or lower"
            " --prompt-seconds"
        )
    window = config.window_frames
    if window is not None and length >= window:
        raise UserError(
            f"the prompt of {duration_s:.3g} s does not fit the model's window of"
            f" {window / config.frame_rate:.3g} s: lower --prompt-seconds"
        )
    return codec.encode_beginning(samples[None, :, :num_samples].to(codec.device))[0]
