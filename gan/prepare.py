"""Stage `prepare` of an adversarial model that is told what another network hears.

    python -m tokkata.gan.prepare RECIPE

A DarkGAN's teacher writes soft labels (`teacher.py`), a VQCPC-GAN's encoder tokens (`vqcpc.py`); both of
every clip of every split, so that later stages only look them up.

Shapes: B batch, L frames of a crop, T frames of a clip, V tokens or labels.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.conditions import Condition, Given, GivenConditions
from ..core.errors import UserError
from ..core.run import stage_main
from ..core.schema import Recipe
from ..core.schema_gan import DarkGanModel, VqcpcGanModel
from . import teacher, vqcpc
from .listeners import heard_in, read_by_clip

TOKENS = "tokens"
"""The condition that a VQCPC-GAN's tokens are: a sequence of ones among zeros, one for each frame."""


class Prepared(ABC):
    """What was heard in the clips of a store."""

    conditions: tuple[Condition, ...]
    """What a model is told of it."""

    @abstractmethod
    def given(self, ids: Sequence[str], starts: Sequence[int], num_samples: int) -> GivenConditions:
        """Of crops of `num_samples` samples from the clips `ids`, from the samples `starts` on.

        Raises `UserError` for a clip that was not there when the stage ran.
        """


class SoftLabels(Prepared):
    """A teacher's; a clip's crops share them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / teacher.SOFT_LABELS
        self._names: list[str] = _about(folder / teacher.ABOUT)["names"]
        self._found = read_by_clip(self._path)
        self.conditions = teacher.soft_label_conditions(self._names)

    def given(self, ids: Sequence[str], starts: Sequence[int], num_samples: int) -> GivenConditions:
        """Numbers `[B, 1]` from 0 to 1."""
        shares = torch.stack([heard_in(self._found, id, self._path) for id in ids])
        shown = torch.ones(len(ids), 1, dtype=torch.bool)
        return {name: Given(shares[:, i : i + 1], shown) for i, name in enumerate(self._names)}


class Tokens(Prepared):
    """An encoder's, one for each frame of the representation."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / vqcpc.TOKENS
        about = _about(folder / vqcpc.ABOUT)
        self._num_tokens: int = about["num_tokens"]
        self._hop: int = about["hop"]
        self._silence: int = about["silence"]
        self._found = read_by_clip(self._path)
        self.conditions = (Condition(TOKENS, "sequence", width=self._num_tokens),)

    def given(self, ids: Sequence[str], starts: Sequence[int], num_samples: int) -> GivenConditions:
        """A sequence `[B, L, V]` of ones among zeros, L = ⌈num_samples / hop⌉.

        A crop has the tokens of the frames nearest to its own, and after a clip's end those of silence.
        """
        length = -(-num_samples // self._hop)
        tokens = torch.full((len(ids), length), self._silence)
        for row, (id, start) in enumerate(zip(ids, starts, strict=True)):
            first = round(start / self._hop)
            found = heard_in(self._found, id, self._path)[first : first + length]
            tokens[row, : len(found)] = found
        return {TOKENS: one_hot(tokens, self._num_tokens)}


def one_hot(tokens: Tensor, num_tokens: int) -> Given:
    """Tokens `[B, L]` as a condition, `[B, L, V]` float32."""
    return Given(F.one_hot(tokens.long(), num_tokens).float(), torch.ones_like(tokens, dtype=torch.bool))


def load_prepared(run: Path, section: DarkGanModel | VqcpcGanModel) -> Prepared:
    """What the stage has written in the run's folder; raises `UserError` if it has not, or it is damaged."""
    if isinstance(section, DarkGanModel):
        return SoftLabels(run / teacher.FOLDER)
    return Tokens(run / vqcpc.FOLDER)


def _about(path: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: run the stage prepare first") from error
    return found


def prepare(recipe: Recipe) -> None:
    """Write `teacher/` or `encoder/`."""
    if isinstance(recipe.model, DarkGanModel):
        teacher.prepare_teacher(recipe)
    else:
        vqcpc.prepare_encoder(recipe)


if __name__ == "__main__":
    stage_main("prepare", prepare)
