"""Features: what a model is told about a clip, computed once beside its tokens, and again for a new prompt.

`load_feature` is the way in for a recipe, `load_feature_from_info` for what a store or a model was made with;
each kind of feature is one file beside this one.

Shapes: B clips, C channels, N samples, L length of a feature (tokens, frames, or 1), E width.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard

import numpy as np
import torch
from torch import Tensor

from ...core import schema_features as schema
from ...core.audio import resample, to_channels
from ...core.errors import UserError
from ...core.files import write_json
from ..chunking import Window, cut
from ..codec import has_no_revisions
from ..share_out import share_out

FEATURES = "features.json"
"""The file of a store that has a `FeatureInfo` for each of its features."""

WINDOW_S = 20.0
"""Longer audio goes through an encoder in windows of this length, in constant memory. It is no setting,
because a new prompt must be treated as the clips of the store were."""


@dataclass(frozen=True)
class FeatureInfo:
    """What anyone who holds a feature must know of its encoder; in `features.json` and a model's config."""

    name: str
    kind: Literal["text", "melody", "style"]
    dim: int
    """Width, E."""
    frame_rate: float | None
    """Frames a second of a feature that follows the clip in time; None for texts and single vectors."""
    store: Literal["float16", "float32"]
    """Number format on disk. Values are rounded to it wherever they are computed."""
    versions: dict[str, str]
    """Libraries whose numerics the values depend on."""
    encoder: str | None = None
    """Hub id, folder, or a codec's name; None where there is no network."""
    revision: str | None = None
    """Commit on the Hub; for a folder, the start of the weights' sha256. None where there are no weights, or
    where whoever named the encoder has not said: a MusicGen does not."""
    column: str | None = None
    """Of a text: where it was taken from."""
    max_tokens: int | None = None
    """Of a text: how many tokens it was cut to."""
    bandwidth_kbps: float | None = None
    """Of a codec that cannot be loaded without one."""
    sample_rate: int | None = None
    """Of audio: the rate in Hz at which the encoder takes it."""
    channels: int | None = None
    """Of audio: the channels that it is mixed to."""

    def check_matches(self, other: FeatureInfo, where: str) -> None:
        """Raise `UserError` if values of `other` mean something else than values of this feature."""
        for name in ("kind", "encoder", "revision", "dim", "frame_rate", "sample_rate", "channels"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "revision" and mine is None:
                continue  # an imported model does not say which commit of its encoder it was trained on
            if mine != theirs:
                raise UserError(f"{where}: {name} is {theirs}, but {mine} is needed")

    def to_json(self) -> dict[str, Any]:
        """In JSON's types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Self:
        """What `to_json` gave; raises `UserError`, which begins with `where`, for anything else."""
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"{where} does not describe a feature: {error}") from error


def write_features(folder: Path, infos: Sequence[FeatureInfo]) -> None:
    """Write `features.json`, atomically."""
    write_json(folder / FEATURES, [info.to_json() for info in infos])


def read_features(folder: Path) -> dict[str, FeatureInfo]:
    """The features of the store in `folder` by name, in the recipe's order; none if there is no such file."""
    path = folder / FEATURES
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        infos = [FeatureInfo.from_json(row, str(path)) for row in rows]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} does not describe features: {error}") from error
    return {info.name: info for info in infos}


class Feature:
    """An encoder with frozen weights, always in float32, whose values are rounded to `info.store`."""

    def __init__(self, info: FeatureInfo) -> None:
        self.info = info

    name = property(lambda self: self.info.name)
    dim = property(lambda self: self.info.dim)
    frame_rate = property(lambda self: self.info.frame_rate)

    def rounded(self, values: Tensor) -> Tensor:
        """`values` as they come out of the store, float32 on the CPU; `UserError` if they do not fit in."""
        rounded = values.to(getattr(torch, self.info.store))
        if not rounded.isfinite().all():
            raise UserError(
                f"feature '{self.name}': {self.info.encoder} gives values that are infinite in"
                f" {self.info.store}: set its `store` to float32, or choose another encoder"
            )
        return rounded.float().cpu()


class TextEncoder(Feature, ABC):
    """A feature of texts."""

    device: torch.device
    """Where the weights are."""

    @abstractmethod
    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, cut to `info.max_tokens`."""

    @abstractmethod
    def encode(self, tokens: Sequence[list[int]]) -> list[Tensor]:
        """One batch of texts, by their tokens, to `[L, E]` each."""

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str | None], batch_size: int = 8) -> list[Tensor]:
        """A feature `[L, E]` float32 on the CPU for each text; L = 0 for None and for blank ones.

        Equal texts are encoded once, and texts of like length together, `batch_size` at a time.
        """
        tokens = {text: self.token_ids(text) for text in texts if has_words(text)}
        wanted = sorted(tokens, key=lambda text: (len(tokens[text]), text))
        found: dict[str | None, Tensor] = {}

        def encode(batch: Sequence[str]) -> None:
            encoded = self.encode([tokens[text] for text in batch])
            found.update(zip(batch, map(self.rounded, encoded), strict=True))

        batches = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
        if self.device.type == "cpu":
            share_out(encode, batches)
        else:
            for batch in batches:
                encode(batch)
        nothing = torch.empty(0, self.dim)
        return [found.get(text, nothing) for text in texts]


def has_words(text: str | None) -> TypeGuard[str]:
    """Whether there is more than blank space."""
    return text is not None and bool(text.strip())


class AudioEncoder(Feature, ABC):
    """A feature of audio of any length, made in windows."""

    in_batches = True
    """Whether windows of equal length gain from being encoded together."""

    @property
    def sample_rate(self) -> int:
        """Rate in Hz of the audio that `plan` and `encode_windows` speak of."""
        assert self.info.sample_rate is not None
        return self.info.sample_rate

    @property
    def channels(self) -> int:
        """Channels of that audio."""
        assert self.info.channels is not None
        return self.info.channels

    @abstractmethod
    def plan(self, num_samples: int) -> Sequence[Window]:
        """The windows that a clip of `num_samples` at `sample_rate` is cut into by `chunking.cut`."""

    @abstractmethod
    def encode_windows(self, audio: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        """Samples `[B, channels, N]` of B equally long windows to what each gives to its clip's feature."""

    @abstractmethod
    def join(self, parts: Sequence[Tensor], windows: Sequence[Window]) -> Tensor:
        """What all windows of a clip give, in order, to its feature `[L, E]`."""

    @torch.no_grad()
    def encode_audio(self, audio: Tensor, sample_rate: int) -> list[Tensor]:
        """A feature `[L, E]` float32 on the CPU for each of the clips `[B, C, N]` at `sample_rate` Hz.

        Channels are averaged (or repeated) and the audio is resampled with soxr's HQ. To hear a file exactly
        as the store's clips were heard, read it with `load_audio(path, feature.sample_rate,
        feature.channels)`.
        """
        if audio.ndim != 3 or not audio.shape[2]:
            raise ValueError(f"audio [B, C, N] expected, not {list(audio.shape)}")
        mixed = [
            resample(to_channels(clip, self.channels), sample_rate, self.sample_rate)
            for clip in audio.detach().float().cpu().numpy()
        ]
        windows = self.plan(mixed[0].shape[1])
        features = []
        for clip in mixed:
            parts = [
                self.encode_windows(torch.from_numpy(samples)[None], [window])[0]
                for window, samples in zip(windows, cut([clip], windows), strict=True)
            ]
            features.append(self.rounded(self.join(parts, windows)))
        return features


def stored(info: FeatureInfo, values: Tensor) -> np.ndarray:
    """What an encoder gives, `[L, E]`, in the number format of the store."""
    return values.numpy().astype(info.store)


# --- loading


def load_feature(config: schema.Feature, device: str | torch.device = "cpu") -> TextEncoder | AudioEncoder:
    """The feature that an entry of a recipe's `tokenize.features` describes.

    Raises `UserError` if its encoder is neither here nor can be downloaded, or is of an unknown kind.
    """
    match config:
        case schema.TextFeature():
            from .text import load_text

            return load_text(config, torch.device(device))
        case schema.MelodyFeature():
            from .melody import Melody

            return Melody(config.name)
        case schema.StyleFeature():
            from .style import load_style

            return load_style(config, torch.device(device))


def load_feature_from_info(
    info: FeatureInfo, device: str | torch.device = "cpu"
) -> TextEncoder | AudioEncoder:
    """The feature that a store or a model was made with, so that a new prompt means what its clips did.

    Raises `UserError` if its encoder cannot be found any more, or has changed since.
    """
    feature = load_feature(_config_of(info), device)
    info.check_matches(feature.info, f"feature '{info.name}' as it is now")
    return feature


def _config_of(info: FeatureInfo) -> schema.Feature:
    if info.kind == "melody":
        return schema.MelodyFeature(kind="melody", name=info.name)
    assert info.encoder is not None
    # The hash of a folder's weights is no revision that could be asked for; names of codecs have none.
    is_named = has_no_revisions(info.encoder) or Path(info.encoder).exists()
    revision = None if is_named else info.revision
    if info.kind == "style":
        return schema.StyleFeature(
            kind="style",
            name=info.name,
            encoder=info.encoder,
            revision=revision,
            bandwidth_kbps=info.bandwidth_kbps,
        )
    assert info.column is not None
    assert info.max_tokens is not None
    return schema.TextFeature(
        kind="text",
        name=info.name,
        encoder=info.encoder,
        revision=revision,
        column=info.column,
        max_tokens=info.max_tokens,
        store=info.store,
    )
