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

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import Condition, Conditions, GivenConditions, label_condition
from ..core.label import Label
from ..core.schema_gan import DarkGanModel, DrumGanModel, GanSection, VqcpcGanModel
from ..tokenize.features.clip_conditions import ClipConditions
from ..tokenize.store import TokenSplit, TokenStore
from .descriptors import DescriptorScale, descriptor_conditions, raw_descriptors
from .gan_model import GanConfig
from .losses import HeadKind
from .prepare import SOFT_LABELS, TOKENS, load_prepared

_EXAMPLES = 512  # clips by which descriptors are scaled


@dataclass(frozen=True)
class ToTell:
    """What a new model is to be told, and how its discriminator's opinions of that are compared."""

    conditions: Conditions
    heads: dict[str, HeadKind]
    descriptor_scale: dict[str, Any] | None = None


def what_to_tell(section: GanSection, store: TokenStore, split: TokenSplit, run: Path) -> ToTell:
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
        scale = _descriptor_scale(store, split).to_json()
    elif isinstance(section, DarkGanModel | VqcpcGanModel):
        more = load_prepared(run).conditions
        kind: HeadKind = "binary_cross_entropy" if isinstance(section, DarkGanModel) else "cross_entropy"
        heads |= dict.fromkeys((one.name for one in more), kind)
    return ToTell(Conditions((*labels, *more)), heads, scale)
