"""Stage `train` of a diffusion model's run: a network over the store's latents, in the shared loop.

    python -m tokkata.diffusion.train RECIPE
    accelerate launch -m tokkata.diffusion.train RECIPE

Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping

import torch
from torch import nn

from ..core.errors import UserError
from ..core.files import atomic_folder
from ..core.job import Batch, Job, Loss, Phase
from ..core.loop import train
from ..core.optimizer import adamw
from ..core.run import is_main_process, stage_main
from ..core.schema import Recipe
from ..core.schema_diffusion import DitModel, StableAudioModel, UNetModel
from ..tokenize.codec import load_codec_from_info
from ..tokenize.features.clip_conditions import ClipConditions, conditions_of, from_batch
from ..tokenize.store import TokenSplit, TokenStore
from ..tokenize.training.audio_store import AudioStore
from .audio_crops import AudioCrops
from .build import network_config
from .card import write_card
from .diffusion_model import DiffusionConfig, DiffusionModel
from .finetune import begin_from_source, save_pipeline, silence_of
from .latent_batches import LatentBatches
from .networks.dit import DiT
from .networks.unet import UNet1d
from .objective import make_objective
from .preview import Preview
from .stable_audio.network import StableAudio


def train_diffusion(recipe: Recipe) -> None:
    """Write `checkpoints/`, `logs/` and `model/`."""
    config, section = recipe.train, recipe.model
    assert isinstance(section, DitModel | UNetModel | StableAudioModel)
    store = TokenStore(recipe.folder / "tokens")
    split = latents_to_train(store, section.sample_posterior)
    num_frames = max(1, round(config.crop_s * store.info.frame_rate))
    torch.manual_seed(config.seed)
    silence = None
    if isinstance(section, StableAudioModel):
        model = begin_from_source(section, store, num_frames)
        silence = silence_of(store, num_frames)
    else:
        model = new_model(section, store, split, num_frames)
    assert isinstance(model.network, DiT | UNet1d | StableAudio)
    model.network.use_attention(section.attention)
    clips = ClipConditions(store, split, model.config.conditions, num_frames)
    audio = audio_crops(recipe, store, split, num_frames) if section.from_audio else None
    batches = LatentBatches(
        clips,
        model.objective,
        config,
        condition_dropout=section.condition_dropout,
        mask_conditions=model.config.mask_conditions,
        sample_posterior=section.sample_posterior,
        silence=silence,
        audio=audio,
    )
    valid = store.split("valid")
    held_out = ClipConditions(store, valid, model.config.conditions, num_frames)
    fixed = LatentBatches(held_out, model.objective, config, silence=silence) if len(valid) else None
    flops = model.network.clip_flops(num_frames, clips.num_states(num_frames))
    loss_of = loss if audio is None else encoding(audio)
    preview = None
    if config.previews:
        preview = Preview(recipe, store, model, None if audio is None else audio.codec)
    train(
        Job(
            modules={"model": model},
            phases=[Phase("model", "model", adamw(model, config), loss_of)],
            averaged="model",
            batch=batches.batch,
            validate=Validation([] if fixed is None else fixed.validation()),
            save=lambda module, scores: save(module, recipe, scores),
            unit="frames",
            flops_per_unit=flops / num_frames,
            preview=preview,
        ),
        config,
        recipe.folder,
    )


def new_model(
    section: DitModel | UNetModel, store: TokenStore, split: TokenSplit, num_frames: int
) -> DiffusionModel:
    """What a recipe asks for, with random weights."""
    conditions = conditions_of(store, split, section.conditions)
    return DiffusionModel(
        DiffusionConfig(
            network=network_config(section, store.info.latent_dim, num_frames, conditions),
            objective=make_objective(section.objective.model_dump()),
            codec=dataclasses.asdict(store.info),
            mask_conditions=section.mask_conditions,
        )
    )


def latents_to_train(store: TokenStore, sample_posterior: bool) -> TokenSplit:
    """The split `train`; raises `UserError` where it does not have what is needed."""
    store.require("latents", "a diffusion model")
    split = store.split("train")
    if not len(split):
        raise UserError(
            "there are no latents in the split 'train': lower the fractions held out, or add audio"
        )
    if sample_posterior and split.latents_scale(0) is None:
        raise UserError(
            f"model.sample_posterior: the codec {store.info.id} is no variational autoencoder, so its latents"
            " have no scale: turn it off"
        )
    return split


def audio_crops(recipe: Recipe, store: TokenStore, split: TokenSplit, num_frames: int) -> AudioCrops:
    """What the stage `prepare` wrote, as the store's codec takes it."""
    samples = AudioStore(recipe.folder / "audio")
    return AudioCrops(samples, split, load_codec_from_info(store.info), store.info, num_frames)


def encoding(audio: AudioCrops) -> Callable[[Mapping[str, nn.Module], Batch], Loss]:
    """`loss` for batches of audio; the codec is no module of the job, because it does not change."""
    return lambda modules, batch: loss(modules, audio.encoded(batch) if "audio" in batch else batch)


def loss(modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
    """Of the module `model`, for a batch of `LatentBatches`."""
    found = modules["model"](
        batch["latents"],
        batch["noise"],
        batch["time"],
        from_batch(batch),
        batch.get("mask"),
        batch.get("known"),
    )
    return Loss(found.mean, found.num_frames)


class Validation:
    """Mean squared distance from the target on fixed held-out clips: over all times, and at each.

    Without clips there are no scores, and a line that says so.
    """

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches
        if not batches and is_main_process():
            print("train: no clip of the split 'valid' can be validated on", file=sys.stderr)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """`loss`, and `loss_at_…` each of the times."""
        device = next(model.parameters()).device
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for batch in self._batches:
            found = loss({"model": model}, {name: t.to(device) for name, t in batch.items()})
            weight = float(found.weight)
            for name in ("loss", f"loss_at_{float(batch['time'][0]):.1f}"):
                sums[name] = sums.get(name, 0.0) + float(found.mean) * weight
                counts[name] = counts.get(name, 0.0) + weight
        return {name: total / counts[name] for name, total in sums.items()}


def save(model: nn.Module, recipe: Recipe, scores: dict[str, float]) -> None:
    """Write the finished model and its card."""
    assert isinstance(model, DiffusionModel)
    with atomic_folder(recipe.folder / "model") as partial:
        model.save_pretrained(partial)
        write_card(partial / "README.md", recipe, model, scores)
        if isinstance(recipe.model, StableAudioModel) and recipe.model.save_pipeline:
            save_pipeline(model, recipe.model, partial / "pipeline")


if __name__ == "__main__":
    stage_main("train", train_diffusion)
