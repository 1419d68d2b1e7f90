"""Stage `train` of a mel-frame VAE's run: single notes in the shared loop; the smallest case of a VAE.

    python -m tokkata.tokenize.training.train_mel_vae RECIPE

Shapes: B batch, N samples, M mel bands, T frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.files import atomic_folder
from ...core.job import Batch, Job, Loss, Phase, num_rows
from ...core.loop import train
from ...core.optimizer import adamw
from ...core.run import stage_main
from ...core.sampler import CropSampler
from ...core.schema import MelVaeModel, Recipe
from .audio_store import AudioStore, StoredClip
from .card import write_mel_vae_card
from .mel_vae import MelVae, MelVaeConfig, MelVaeOutput, negative_elbo
from .posterior import PosteriorStats, noise_of_rows

_NUM_EXAMPLES = 256


class MelVaeLoss:
    """The negative evidence lower bound, with β."""

    def __init__(self, beta: float) -> None:
        self._beta = beta

    def __call__(self, modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
        """`batch["spectrogram"]` is `[B, M, T]`, `batch["noise"]` `[B, D]`."""
        spectrogram = batch["spectrogram"]
        out: MelVaeOutput = modules["vae"](spectrogram, batch["noise"])
        likelihood, divergence = negative_elbo(spectrogram, out, self._beta)
        error = (out.decoded - spectrogram).square().mean()
        metrics = {"squared_error": error, "kl": divergence / self._beta if self._beta else 0 * divergence}
        weight = num_rows(spectrogram)
        return Loss(likelihood + divergence, weight, metrics)


def train_mel_vae(recipe: Recipe) -> None:
    """Write `checkpoints/`, `logs/` and `model/`."""
    settings = recipe.model
    assert isinstance(settings, MelVaeModel)
    store = AudioStore(recipe.folder / "audio")
    clips, held_out = store.split("train"), store.split("valid")
    if not clips:
        raise UserError("the corpus has no clips in its split 'train'")
    config = MelVaeConfig(
        sample_rate_hz=settings.sample_rate_hz,
        note_samples=round(recipe.train.crop_s * settings.sample_rate_hz),
        latent_dim=settings.latent_dim,
        hidden_dim=settings.hidden_dim,
        num_mels=settings.num_mels,
        window=settings.window,
    )
    if config.note_samples < config.window:
        raise UserError(
            f"train.crop_s: notes of {config.note_samples} samples are shorter than"
            f" model.window, {config.window}"
        )
    torch.manual_seed(recipe.train.seed)
    vae = MelVae(standardised(config, store, clips))
    # Notes from their beginnings: a vector stands for a whole one.
    sampler = CropSampler([1] * len(clips), 1, recipe.train.seed)

    def batch(step: int, rows: range) -> Batch:
        drawn = [clips[c.clip] for c in sampler.draw(step, recipe.train.batch_size, rows)]
        return {
            "spectrogram": vae.spectrogram(notes(store, drawn, config)),
            "noise": noise_of_rows(recipe.train.seed, step, rows, (config.latent_dim,)),
        }

    def validate(module: nn.Module) -> dict[str, float]:
        return scores_of(module, vae.spectrogram(notes(store, held_out, config))) if held_out else {}

    def save(module: nn.Module, scores: dict[str, float]) -> None:
        assert isinstance(module, MelVae)
        with atomic_folder(recipe.folder / "model") as partial:
            module.save(partial)
            stats = PosteriorStats()
            out: MelVaeOutput = module(
                vae.spectrogram(notes(store, clips[:_NUM_EXAMPLES], config)).to(
                    next(module.parameters()).device
                )
            )
            stats.add(out.mean.T[None], out.scale.T[None])
            stats.summary().write(partial)
            write_mel_vae_card(partial, recipe, scores)

    train(
        Job(
            modules={"vae": vae},
            phases=[Phase("vae", "vae", adamw(vae, recipe.train), MelVaeLoss(settings.beta))],
            averaged="vae",
            batch=batch,
            validate=validate,
            save=save,
            unit="notes",
        ),
        recipe.train,
        recipe.folder,
    )


def notes(store: AudioStore, clips: list[StoredClip], config: MelVaeConfig) -> Tensor:
    """The beginnings of `clips`, `[B, N]`."""
    return torch.from_numpy(np.stack([store.crop(clip, 0, config.note_samples) for clip in clips]))


def standardised(config: MelVaeConfig, store: AudioStore, clips: list[StoredClip]) -> MelVaeConfig:
    """`config` with the mean and the standard deviation of some notes' log-mel magnitudes."""
    seen = MelVae(config).spectrogram(notes(store, clips[:_NUM_EXAMPLES], config))
    return dataclasses.replace(config, log_mel_mean=float(seen.mean()), log_mel_std=float(seen.std()))


@torch.no_grad()
def scores_of(vae: nn.Module, spectrogram: Tensor) -> dict[str, float]:
    """Of held-out spectrograms `[B, M, T]`: the error of what their posterior's means decode to, and more."""
    spectrogram = spectrogram.to(next(vae.parameters()).device)
    out: MelVaeOutput = vae(spectrogram)
    stats = PosteriorStats()
    stats.add(out.mean.T[None], out.scale.T[None])  # the notes are the frames
    error = float((out.decoded - spectrogram).square().mean())
    return {"loss": error, **stats.summary().metrics()}


if __name__ == "__main__":
    stage_main("train", train_mel_vae)
