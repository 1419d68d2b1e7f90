"""Fine-tuning of a Stable Audio Open on clips of one's own.

Network, conditions and objective are the source's; so are all weights. Latents must be of its codec, and what
it is told of its text encoder. Such a network knows clips of one length, and silence after shorter ones.

Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ..core.conditions import Conditions
from ..core.device import best_device
from ..core.errors import UserError
from ..core.hub_cache import hub_snapshot
from ..core.schema_diffusion import StableAudioModel
from ..tokenize.codec import load_codec_from_info
from ..tokenize.families.codec_oobleck import HubOobleck, Posterior
from ..tokenize.features.inherited import inherited_feature
from ..tokenize.store import TokenStore
from .diffusion_model import DiffusionModel
from .load import load_diffusion
from .stable_audio.files import PIPELINE_FILES, save_stable_audio, scheduler_of
from .stable_audio.network import StableAudio


def begin_from_source(section: StableAudioModel, store: TokenStore, num_frames: int) -> DiffusionModel:
    """The model that `model.source` names, ready to be trained on `store` in clips of `num_frames`.

    Raises `UserError` if it cannot be had, is no Stable Audio, or does not fit the latents of `store`.
    """
    name = f"model.source {section.source}"
    source = load_diffusion(section.source, revision=section.source_revision)
    network, info = source.network.config, store.info
    if not isinstance(source.network, StableAudio):
        raise UserError(f"{name} is a {network.kind}, no Stable Audio")
    if section.save_pipeline:
        pipeline_folder(section)
    source.config.codec_info.check_matches(info, f"the latents do not fit {name}")
    if info.latents != "latents":
        raise UserError(f"{name} knows its codec's latents as they are: set tokenize.store to latents")
    if num_frames > network.max_frames:
        raise UserError(
            f"train.crop_s: {num_frames / info.frame_rate:g} s are more than the"
            f" {network.max_frames / info.frame_rate:g} s of {name}: lower it"
        )
    conditions = [
        inherited_feature(name, one, store) if one.kind == "sequence" else one for one in network.conditions
    ]
    config = dataclasses.replace(
        source.config,
        network=dataclasses.replace(network, max_frames=num_frames, conditions=Conditions(tuple(conditions))),
    )
    model = DiffusionModel(config)
    model.load_state_dict(source.state_dict())
    return model


def silence_of(store: TokenStore, num_frames: int) -> Posterior:
    """What the store's codec makes of `num_frames` frames of silence: [1, D, T] on the CPU."""
    codec = load_codec_from_info(store.info, best_device())
    assert isinstance(codec, HubOobleck), "checked: the codec is the source's"
    audio = torch.zeros(1, codec.channels, num_frames * codec.hop_length, device=codec.device)
    found = codec.encode_posterior(audio)
    return Posterior(found.mean.cpu(), found.scale.cpu())


def pipeline_folder(section: StableAudioModel) -> Path:
    """The pipeline that `model.source` names, with all its parts.

    Raises `UserError` if it is none, or is not complete.
    """
    folder = Path(section.source)
    if not folder.exists():
        return hub_snapshot(section.source, section.source_revision, [PIPELINE_FILES], "model").folder
    for file in PIPELINE_FILES:
        if not (folder / file).is_file():
            raise UserError(
                f"model.save_pipeline: {folder} is no pipeline of Stable Audio, because it lacks {file}: turn"
                " it off, or name a pipeline as model.source"
            )
    return folder


def save_pipeline(model: DiffusionModel, section: StableAudioModel, folder: Path) -> None:
    """Write `folder`, a pipeline of `diffusers` with the model's network and the source's other parts."""
    assert isinstance(model.network, StableAudio)
    source = pipeline_folder(section)
    save_stable_audio(model.network, folder, scheduler=scheduler_of(source), other_parts=source)
