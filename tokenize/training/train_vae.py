"""Stage `train` of a VAE's run: a variational autoencoder of audio in the shared loop.

    python -m tokkata.tokenize.training.train_vae RECIPE

The architecture is Oobleck, that of Stable Audio Open (arXiv:2407.14358, sec. 3.1). The loss is the negative
evidence lower bound (arXiv:1312.6114, eq. 3) with spectral distances for its likelihood, and an adversarial
phase where the recipe has one.

Shapes: B batch, C channels, N samples, D latent width, T frames.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.files import atomic_folder
from ...core.job import Batch, Job, Loss, Phase, num_rows
from ...core.loop import train
from ...core.optimizer import adamw
from ...core.run import is_main_process, stage_main
from ...core.sampler import CropSampler
from ...core.schema import Recipe, VaeModel
from ..fidelity import MelDistance, si_sdr
from .adversarial import DECODED, DISCRIMINATOR, Adversary
from .audio_store import AudioStore
from .card import write_card
from .oobleck_start import start_as_transform
from .oobleck_vae import OobleckVae, VaeOutput, hop_length, save_oobleck
from .posterior import PosteriorStats, PosteriorSummary, kl_from_prior, noise_of_rows
from .reconstruction_terms import LEVEL, ReconstructionTerms

# Validation looks at the same few seconds each time.
_VALID_CROPS = 32
_VALID_S = 2.0

_EXAMPLE_S = 2.0


class VaeLoss:
    """Reconstruction, divergence and adversarial terms, weighted as the recipe says."""

    def __init__(
        self, config: VaeModel, num_steps: int, adversary: Adversary | None, examples: Tensor
    ) -> None:
        """`examples` `[B, C, N]` of the corpus say what its amplitude is."""
        self._config = config
        self._adversary = adversary
        self._terms = ReconstructionTerms(config, num_steps, examples)

    def __call__(self, modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
        """`batch["audio"]` is `[B, C, N]`, `batch["noise"]` `[B, D, T]`, `batch["step"]` a scalar."""
        audio, step = batch["audio"], int(batch["step"])
        out: VaeOutput = modules["vae"](audio, batch["noise"])
        kl = kl_from_prior(out.mean, out.scale).sum(1).mean()
        terms = self._terms(out.audio, audio, step)
        total = kl_weight(self._config, step) * kl
        for name, term in terms.items():
            total = total + self._terms.weights[name] * term
        metrics = {**terms, "kl": kl, **_scales(out), LEVEL: self._terms.level(out.audio)}
        if self._adversary is not None and self._adversary.is_active(batch):
            said = self._adversary.generator_terms(modules, out.audio, audio)
            weights = self._adversary.config
            total = total + weights.weight * said.adversarial + weights.feature_weight * said.features
            metrics |= {"adversarial": said.adversarial, "features": said.features}
        weight = num_rows(audio)
        return Loss(total, weight, metrics, made={DECODED: out.audio})


def kl_weight(config: VaeModel, step: int) -> float:
    """Linear warm-up from 0, then constant; `step` counts from 0."""
    return config.kl_weight * min(1.0, step / config.kl_warmup_steps if config.kl_warmup_steps else 1.0)


def _scales(out: VaeOutput) -> dict[str, Tensor]:
    """By which a collapse (scale 1, mean 0) or latents that grow without bounds are seen at once."""
    return {"posterior_scale": out.scale.mean(), "mean_rms": out.mean.square().mean((1, 2)).sqrt().mean()}


def train_vae(recipe: Recipe) -> None:
    """Write `checkpoints/`, `logs/` and `model/`."""
    config = recipe.model
    assert isinstance(config, VaeModel)
    store = AudioStore(recipe.folder / "audio")
    clips = store.split("train")
    if not clips:
        raise UserError("the corpus has no clips in its split 'train'")
    hop = hop_length(config)
    crop = -(-round(recipe.train.crop_s * config.sample_rate_hz) // hop) * hop
    sampler = CropSampler([clip.num_samples for clip in clips], crop, recipe.train.seed)

    def batch(step: int, rows: range) -> Batch:
        crops = sampler.draw(step, recipe.train.batch_size, rows)
        audio = np.stack([store.crop_channels(clips[c.clip], c.start, crop) for c in crops])
        return {
            "audio": torch.from_numpy(audio),
            "noise": noise_of_rows(recipe.train.seed, step, rows, (config.latent_dim, crop // hop)),
            "step": torch.tensor(step),
        }

    torch.manual_seed(recipe.train.seed)
    vae = OobleckVae(config)
    heard = _examples(store, config)
    if config.start == "transform":
        try:
            start_as_transform(vae, heard)
        except ValueError as error:
            raise UserError(f"model.encoder_rates: {error}") from error
    modules: dict[str, nn.Module] = {"vae": vae}
    adversary = None
    if config.adversarial is not None:
        adversary = Adversary(config.adversarial, config.sample_rate_hz, recipe.train)
        modules[DISCRIMINATOR] = adversary.module
    watched = "mel" if config.mel_weight else "stft" if config.stft_weight else "waveform"
    loss = VaeLoss(config, recipe.train.steps, adversary, heard)
    phases = [Phase("vae", "vae", adamw(vae, recipe.train), loss, watched=watched, level=LEVEL)]
    validation = _Validation(store, config)
    train(
        Job(
            modules=modules,
            phases=phases if adversary is None else [*phases, adversary.phase],
            averaged="vae",
            batch=batch,
            validate=validation,
            save=lambda module, scores: _save(module, recipe, validation, scores),
            unit="clips",
        ),
        recipe.train,
        recipe.folder,
    )


def _examples(store: AudioStore, config: VaeModel) -> Tensor:
    """Audio `[B, C, N]` from all over the training clips, by which a fresh VAE is scaled."""
    hop = hop_length(config)
    longest = max(clip.num_samples for clip in store.split("train"))
    length = min(round(_EXAMPLE_S * config.sample_rate_hz), longest)
    return torch.from_numpy(store.examples(-(-length // hop) * hop))


class _Validation:
    """Fidelity, and the posterior's statistics, on fixed crops of the split `valid`; nothing if empty."""

    def __init__(self, store: AudioStore, config: VaeModel) -> None:
        clips = store.split("valid")
        if not clips and is_main_process():
            print("train: the split 'valid' has no clips, so there is no validation", file=sys.stderr)
        chosen = np.random.default_rng(0).permutation(len(clips))[:_VALID_CROPS]
        hop = hop_length(config)
        num_samples = -(-round(_VALID_S * config.sample_rate_hz) // hop) * hop
        self._crops = [torch.from_numpy(store.crop_channels(clips[i], 0, num_samples)) for i in chosen]
        self._mel = MelDistance(config.sample_rate_hz, config.mel_floor)
        self.posterior: PosteriorSummary | None = None
        """Of the last validation."""

    def __call__(self, vae: nn.Module) -> dict[str, float]:
        if not self._crops:
            return {}
        mels, ratios, stats = [], [], PosteriorStats()
        for first in range(0, len(self._crops), 8):
            audio = torch.stack(self._crops[first : first + 8]).to(next(vae.parameters()).device)
            out: VaeOutput = vae(audio)
            mels.append(float(self._mel(out.audio, audio)))
            ratios.append(si_sdr(out.audio.flatten(1), audio.flatten(1)).cpu())
            stats.add(out.mean, out.scale)
        self.posterior = stats.summary()
        return {
            "loss": float(np.mean(mels)),
            "si_sdr_db": float(torch.cat(ratios).median()),
            **self.posterior.metrics(),
        }


def _save(vae: nn.Module, recipe: Recipe, validation: _Validation, scores: dict[str, float]) -> None:
    assert isinstance(vae, OobleckVae)
    assert isinstance(recipe.model, VaeModel)
    folder: Path = recipe.folder / "model"
    with atomic_folder(folder) as partial:
        save_oobleck(vae, partial, recipe.model)
        if validation.posterior is not None:
            validation.posterior.write(partial)
        write_card(partial, recipe, scores)


if __name__ == "__main__":
    stage_main("train", train_vae)
