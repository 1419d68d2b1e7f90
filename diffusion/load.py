"""Diffusion models by name, and the codec of their latents.

model = load_diffusion("runs/quickstart-diffusion/model")      # also runs/quickstart-diffusion, user/model
codec = codec_of(model)
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..core.errors import UserError
from ..core.hub_cache import hub_snapshot
from ..core.saved_model import (
    CONFIG_NAME,
    PIPELINE_INDEX,
    WEIGHTS_NAME,
    is_pipeline,
    model_folder,
    read_config,
)
from ..tokenize.codec import Codec, load_codec_from_info
from .diffusion_model import KIND, DiffusionModel
from .stable_audio.model import stable_audio_model


def load_diffusion(
    source: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
) -> DiffusionModel:
    """A diffusion model in evaluation mode: from its folder, a run's, or the Hub; also a Stable Audio Open in
    the layout of `diffusers`.

    Raises `UserError` if there is no model, or one of another kind.
    """
    is_here = Path(source).exists()
    folder = Path(source)
    if not is_here:
        layouts = [(CONFIG_NAME, WEIGHTS_NAME), (PIPELINE_INDEX,)]
        folder = hub_snapshot(str(source), revision, layouts, "model").folder
    if is_pipeline(folder):
        return stable_audio_model(source, revision=revision).to(device)
    if is_here:
        folder = model_folder(folder)
    kind = read_config(folder / CONFIG_NAME).get("kind")
    if kind != KIND:
        raise UserError(f"{source} is no diffusion model: its {CONFIG_NAME} says kind {kind!r}")
    return DiffusionModel.from_pretrained(folder).to(device)


def codec_of(model: DiffusionModel, device: str | torch.device = "cpu") -> Codec:
    """The codec that turns the model's latents into audio, as its configuration describes it.

    Raises `UserError` if it describes none, or one that cannot be had any more or has changed since.
    """
    info = model.config.codec_info
    codec = load_codec_from_info(info, device)
    if codec.latent_dim != info.latent_dim and info.latents != "projected_latents":
        raise UserError(
            f"the model's latents have {info.latent_dim} numbers a frame, the codec {info.id} makes"
            f" {codec.latent_dim}"
        )
    return codec
