"""What the stage `prepare` of an adversarial model has written of every clip, as conditions of crops.

It stands apart from what writes it: whoever trains or samples a model looks it up, and needs neither the
teacher nor the encoder.

    run/
      teacher/soft_labels.safetensors, soft_labels.json      a DarkGAN's
      encoder/tokens.safetensors, tokens.json                a VQCPC-GAN's

Shapes: B batch, L frames of a crop, T frames of a clip, V tokens or labels.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ...core.conditions import Condition, Given, GivenConditions
from ...core.errors import UserError
from ...core.files import atomic_file
from ...core.schema_gan import DarkGanModel, VqcpcGanModel

TEACHER, ENCODER = "teacher", "encoder"
"""Folders of a run."""
SOFT_LABELS, ABOUT_SOFT_LABELS = "soft_labels.safetensors", "soft_labels.json"
TOKENS_FILE, ABOUT_TOKENS = "tokens.safetensors", "tokens.json"
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
        self._path = folder / SOFT_LABELS
        self._names: list[str] = _about(folder / ABOUT_SOFT_LABELS)["names"]
        self._found = read_by_clip(self._path)
        self.conditions = soft_label_conditions(self._names)

    def given(self, ids: Sequence[str], starts: Sequence[int], num_samples: int) -> GivenConditions:
        """Numbers `[B, 1]` from 0 to 1."""
        shares = torch.stack([heard_in(self._found, id, self._path) for id in ids])
        shown = torch.ones(len(ids), 1, dtype=torch.bool)
        return {name: Given(shares[:, i : i + 1], shown) for i, name in enumerate(self._names)}


class Tokens(Prepared):
    """An encoder's, one for each frame of the representation."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOKENS_FILE
        about = _about(folder / ABOUT_TOKENS)
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
        return SoftLabels(run / TEACHER)
    return Tokens(run / ENCODER)


def _about(path: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: run the stage prepare first") from error
    return found


def soft_label_conditions(names: Sequence[str]) -> tuple[Condition, ...]:
    """What a model is told of soft labels: a number from 0 to 1 each."""
    return tuple(Condition(name, "number", width=2, maximum=1.0) for name in names)


def write_by_clip(path: Path, found: Mapping[str, Tensor]) -> None:
    """Write what was heard in each clip, by its id."""
    with atomic_file(path) as partial:
        save_file({id: tensor.contiguous() for id, tensor in found.items()}, partial)


def read_by_clip(path: Path) -> dict[str, Tensor]:
    """Undo `write_by_clip`; raises `UserError` if there is no such file, or it is damaged."""
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: run the stage prepare again") from error
    return found


def heard_in(found: Mapping[str, Tensor], id: str, path: Path) -> Tensor:
    """What was heard in the clip `id`; raises `UserError` if that is not known."""
    if id not in found:
        raise UserError(f"{path} knows nothing of the clip '{id}': run the stage prepare again")
    return found[id]
