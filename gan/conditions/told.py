"""What an adversarial model is told of real clips: labels of the store, and what was heard in the clips.

Three things can be heard: descriptors of timbre, computed from the samples where they are needed; a teacher's
soft labels and an encoder's tokens, which the stage `prepare` has written for every clip.

Shapes: B batch, D latent width of the codec, T its frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.conditions import Condition, Conditions, GivenConditions, label_condition
from ...core.label import Label
from ...core.schema_gan import DarkGanModel, DrumGanModel, GanSection, VqcpcGanModel
from ...tokenize.features.clip_conditions import ClipConditions
from ...tokenize.store import TokenSplit, TokenStore
from ..crops import Crops, read_latents, some_clips
from ..gan_model import GanConfig
from ..losses import HeadKind
from .descriptors import DESCRIPTORS, DescriptorScale, descriptor_conditions, raw_descriptors
from .prepared import Prepared, load_prepared

_EXAMPLES = 512  # clips by which descriptors are scaled
_AT_ONCE = 32


@dataclass(frozen=True)
class ToTell:
    """What a new model is to be told, and how its discriminator's opinions of that are compared."""

    conditions: Conditions
    heads: dict[str, HeadKind]
    descriptor_scale: dict[str, Any] | None = None


def what_to_tell(
    section: GanSection, store: TokenStore, split: TokenSplit, run: Path, num_frames: int
) -> ToTell:
    """Of the recipe's section and the clips of the split `train`.

    Raises `UserError` for a label that clips do not have.
    """
    labels = [label_condition(name, split.column(name)) for name in section.conditions]
    heads: dict[str, HeadKind] = dict.fromkeys(section.conditions, "cross_entropy")
    more: Sequence[Condition] = ()
    scale = None
    if isinstance(section, DrumGanModel):
        more = descriptor_conditions(section.descriptors)
        heads |= dict.fromkeys((one.name for one in more), "squared_error")
        chosen = some_clips(split, _EXAMPLES)
        raw = [
            raw_descriptors(
                read_latents(split, store.info.latent_dim, num_frames, [(c, 0) for c in some])[:, 0],
                store.info.sample_rate,
            )
            for some in (chosen[i : i + _AT_ONCE] for i in range(0, len(chosen), _AT_ONCE))
        ]
        scale = DescriptorScale.fit(torch.cat(raw)).to_json()
    elif isinstance(section, DarkGanModel | VqcpcGanModel):
        more = load_prepared(run, section).conditions
        kind: HeadKind = "binary_cross_entropy" if isinstance(section, DarkGanModel) else "cross_entropy"
        heads |= dict.fromkeys((one.name for one in more), kind)
    return ToTell(Conditions((*labels, *more)), heads, scale)


class ClipTold:
    """The clips of a split as a model reads them and is told of them."""

    def __init__(self, store: TokenStore, split: TokenSplit, config: GanConfig, run: Path) -> None:
        """`run` is where the stage `prepare` has written, for models that have one."""
        self.split, self.num_frames = split, config.num_frames
        self._config, self._dim, self._rate = config, store.info.latent_dim, store.info.sample_rate
        labels = [one for one in config.conditions if one.kind == "label"]
        self._labels = ClipConditions(store, split, Conditions(tuple(labels)), config.num_frames)
        self._ids = [str(id) for id in split.column("id")]
        scale = config.descriptor_scale
        self._scale = None if scale is None else DescriptorScale.from_json(scale)
        self._prepared: Prepared | None = None
        if isinstance(config.section, DarkGanModel | VqcpcGanModel):
            self._prepared = load_prepared(run, config.section)

    def latents(self, crops: Crops) -> Tensor:
        """`[B, D, T]`, as `read_latents`."""
        return read_latents(self.split, self._dim, self.num_frames, crops)

    def read(self, crops: Crops) -> tuple[Tensor, GivenConditions]:
        """`latents`, and what the model is told of them."""
        latents = self.latents(crops)
        given = self._labels.given(crops)
        if self._scale is not None:
            unit = self._scale.to_unit(raw_descriptors(latents[:, 0], self._rate))
            told = {name: unit[:, DESCRIPTORS.index(name)].tolist() for name in self._numbers}
            given |= Conditions(tuple(c for c in self._config.conditions if c.kind == "number")).encode(told)
        if self._prepared is not None:
            ids = [self._ids[clip] for clip, _ in crops]
            given |= self._prepared.given(ids, [start for _, start in crops], self.num_frames)
        return latents, given

    @property
    def _numbers(self) -> list[str]:
        return [one.name for one in self._config.conditions if one.kind == "number"]

    def known(self, clips: Iterable[int]) -> list[int]:
        """Those of some clips whose labels all have values that the model has met."""
        return self._labels.known(clips)

    def said(self, crops: Crops, given: GivenConditions) -> list[dict[str, Label]]:
        """What is told of each clip, as words and numbers."""
        numbers = self._numbers
        return [
            self._labels.labels(clip)
            | {name: round(float(given[name].values[row, 0]), 4) for name in numbers}
            for row, (clip, _) in enumerate(crops)
        ]
