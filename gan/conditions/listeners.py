"""What the networks have in common that hear the corpus before a generator is told what they heard.

They are trained in the shared loop on crops of the split `train`, and then listen to every clip of every
split. What decides their training stands in the recipe's section of them, and here: the section `train` is
the generator's, of which they take only what cannot change a result.

Shapes: B batch, N samples, M mel bands, T frames.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import torch
import torchaudio
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.files import atomic_folder, write_json
from ...core.schema import Recipe, Train
from ...core.sections import Split
from ...tokenize.store import TokenSplit, TokenStore
from ..crops import Crops, read_latents
from ..short_time import ShortTime

SEED = 0
BATCH_SIZE = 32
NUM_EXAMPLES = 256
"""Clips that tell how loud log-mel magnitudes are."""

_FLOOR = 1e-3  # of mel magnitudes; a full-scale sine's is a quarter of the window's length
_AT_ONCE = 2**22  # samples


class LogMel(nn.Module):
    """Standardised log-mel magnitudes, with the frames of `ShortTime`. It has no weights."""

    def __init__(
        self, sample_rate: int, window: int, hop: int, num_mels: int, mean: float = 0.0, std: float = 1.0
    ) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.transform = ShortTime(window, hop)
        bank = torchaudio.functional.melscale_fbanks(
            window // 2 + 1, 0.0, sample_rate / 2, num_mels, sample_rate
        )
        self.register_buffer("bank", bank.T.contiguous(), persistent=False)
        self.bank: Tensor

    def forward(self, audio: Tensor) -> Tensor:
        """Audio `[B, N]` to `[B, M, T]`."""
        with torch.autocast(audio.device.type, enabled=False):
            mel = self.bank @ self.transform(audio.float()).abs()
            found: Tensor = (mel.clamp(min=_FLOOR).log() - self.mean) / self.std
        return found


class Listener(nn.Module):
    """A network that is saved as its configuration and its weights, and made from the former alone."""

    kind: ClassVar[str]
    """What messages and `config.json` call it."""
    config_class: ClassVar[type]
    """A frozen dataclass of JSON values."""
    config: Any

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        write_json(folder / "config.json", {"model_type": self.kind} | dataclasses.asdict(self.config))
        save_file({name: t.cpu() for name, t in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; raises `UserError` if it is damaged."""
        try:
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            del values["model_type"]
            network = cls(cls.config_class(**values))
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder} holds no whole {cls.kind}: {error}") from error
        return network.eval()


def save(listener: nn.Module, folder: Path) -> None:
    """Write a finished listener."""
    assert isinstance(listener, Listener)
    with atomic_folder(folder) as partial:
        listener.save(partial)


@dataclass(frozen=True)
class LogMelScale:
    """Of log-mel magnitudes, over some clips."""

    mean: float
    std: float


def scale_of(log_mel: LogMel, audio: Tensor) -> LogMelScale:
    """Of what `log_mel`, which has none itself, makes of audio `[B, N]`."""
    found = log_mel(audio)
    return LogMelScale(float(found.mean()), max(float(found.std()), 1e-3))


def loop_settings(recipe: Recipe, steps: int) -> Train:
    """How a listener is trained; only what cannot change a result is the recipe's."""
    train = recipe.train
    return Train(
        steps=steps,
        batch_size=BATCH_SIZE,
        lr=2e-3,
        weight_decay=0.01,
        warmup_steps=min(50, steps // 10),
        ema_decay=0.98,
        seed=SEED,
        log_every=train.log_every,
        validate_every=train.validate_every,
        save_every=train.save_every,
        keep_checkpoints=train.keep_checkpoints,
        timeout_s=train.timeout_s,
    )


def read_audio(split: TokenSplit, crops: Crops, num_samples: int) -> Tensor:
    """`[B, num_samples]` of crops; silence after a clip's end."""
    return read_latents(split, 1, num_samples, crops)[:, 0]


@dataclass(frozen=True)
class WholeClips:
    """Clips of equal length."""

    ids: list[str]
    audio: Tensor  # [B, N]


def whole_clips(store: TokenStore) -> Iterator[WholeClips]:
    """All clips of all splits, several at once where neighbours are equally long."""
    for name in get_args(Split):
        split = store.split(name)
        ids = [str(id) for id in split.column("id")] if len(split) else []
        for length, found in groupby(range(len(split)), lambda clip: int(split.num_frames[clip])):  # noqa: B023
            clips = list(found)
            size = max(1, min(BATCH_SIZE, _AT_ONCE // length))
            for first in range(0, len(clips), size):
                some = clips[first : first + size]
                yield WholeClips(
                    [ids[clip] for clip in some], read_audio(split, [(clip, 0) for clip in some], length)
                )
