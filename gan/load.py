"""Adversarial models by name, and the codec that makes audio of what they make.

model = load_gan("runs/notes-gansynth/model")      # also runs/notes-gansynth, user/model
codec = codec_of(model)
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..core.errors import UserError
from ..core.hub_cache import hub_snapshot
from ..core.saved_model import CONFIG_NAME, WEIGHTS_NAME, model_folder, read_config
from ..tokenize.codec import Codec, load_codec_from_info
from .gan_model import KIND, GanModel


def load_gan(
    source: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
) -> GanModel:
    """An adversarial model in evaluation mode: from its folder, a run's, or the Hub.

    Raises `UserError` if there is no model, or one of another kind.
    """
    if Path(source).exists():
        folder = model_folder(Path(source))
    else:
        folder = hub_snapshot(str(source), revision, [(CONFIG_NAME, WEIGHTS_NAME)], "model").folder
    kind = read_config(folder / CONFIG_NAME).get("kind")
    if kind != KIND:
        raise UserError(f"{source} is no adversarial model: its {CONFIG_NAME} says kind {kind!r}")
    return GanModel.from_pretrained(folder).to(device)


def codec_of(model: GanModel, device: str | torch.device = "cpu") -> Codec:
    """The codec that turns what the model makes into audio, as its configuration describes it.

    Raises `UserError` if it cannot be had any more or has changed since.
    """
    return load_codec_from_info(model.config.codec_info, device)
