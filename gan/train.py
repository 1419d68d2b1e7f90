"""Stage `train` of an adversarial model's run: a generator and its discriminator, in the shared loop.

    python -m tokkata.gan.train RECIPE
    accelerate launch -m tokkata.gan.train RECIPE

In every step the discriminator learns from real clips and from what the generator makes; in every
`model.discriminator_steps`-th, the generator learns what the discriminator then says of new clips.

Shapes: B batch, D latent width of the codec, T frames.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core.conditions import GivenConditions, select
from ..core.errors import UserError
from ..core.files import atomic_folder
from ..core.job import Batch, Job, Loss, Phase, num_rows
from ..core.loop import train
from ..core.optimizer import adamw
from ..core.other_network import bare, frozen
from ..core.run import is_main_process, stage_main
from ..core.schema import Recipe, Train
from ..core.schema_gan import GanSection, ProgressiveSection
from ..core.sharding import is_sharded
from ..tokenize.codec import Codec, load_codec_from_info
from ..tokenize.fast_codec import fast
from ..tokenize.features.clip_conditions import from_batch
from ..tokenize.latent_coding import latent_coding
from ..tokenize.store import TokenStore
from .batches import DRAWS, MIX, NOISE, OTHER_NOISE, REAL, STEP, GanBatches, draw_noise, fixed_crops
from .build import make_discriminator
from .card import write_card
from .collapse import Collapse, collapse_statistics
from .conditions.examples import examples_of
from .conditions.told import ClipTold, what_to_tell
from .gan_model import GanConfig, GanModel
from .growth import level_of
from .losses import HeadKind, head_loss, make_game
from .networks.family import Discriminator, Verdict
from .preview import Preview

MODEL, DISCRIMINATOR = "model", "discriminator"
"""The modules of the job."""

SIZE = "score_size"
"""The metric by which a game that has run away is noticed: how far from 0 scores are."""

_EXAMPLES = 128  # clips by which a representation is scaled
_VALID_CLIPS = 32  # the same ones in every validation
_AT_ONCE = 8  # of them, so that a codec needs little memory beside what is trained


def train_gan(recipe: Recipe) -> None:
    """Write `checkpoints/`, `logs/` and `model/`."""
    section, config = recipe.model, recipe.train
    assert isinstance(section, GanSection)
    store = TokenStore(recipe.folder / "tokens")
    store.require("latents", "an adversarial model")
    split = store.split("train")
    if not len(split):
        raise UserError("there are no clips in the split 'train': lower the fractions held out, or add audio")
    num_frames = max(1, round(config.crop_s * store.info.frame_rate))
    told = what_to_tell(section, store, split, recipe.folder, num_frames)
    settings = GanConfig(
        section=section,
        codec=dataclasses.asdict(store.info),
        num_frames=num_frames,
        conditions=told.conditions,
        heads=told.heads,
        descriptor_scale=told.descriptor_scale,
    )
    clips = ClipTold(store, split, settings, recipe.folder)
    torch.manual_seed(config.seed)
    model = GanModel(dataclasses.replace(settings, examples=examples_of(clips, told.conditions)))
    network = make_discriminator(section, model.shape, model.config.conditions)
    batches = GanBatches(clips, model.generator, model.shape.num_frames, network.num_draws, config)
    model.fit(batches.examples(_EXAMPLES))
    step = GanStep(model, section, config)
    discriminator_optimizer = adamw(network, config)
    for group in discriminator_optimizer.param_groups:
        group["lr_scale"] = (section.discriminator_lr or config.lr) / config.lr
    codec = fast(load_codec_from_info(store.info))
    held_out = ClipTold(store, store.split("valid"), model.config, recipe.folder)
    train(
        Job(
            modules={MODEL: model, DISCRIMINATOR: Judge(network)},
            phases=[
                Phase(
                    DISCRIMINATOR,
                    DISCRIMINATOR,
                    discriminator_optimizer,
                    step.discriminator_loss,
                    watched=None if step.game.ceiling is None else SIZE,
                    ceiling=step.game.ceiling,
                ),
                Phase(
                    "generator",
                    MODEL,
                    adamw(model, config),
                    step.generator_loss,
                    every=section.discriminator_steps,
                ),
            ],
            averaged=MODEL,
            batch=batches.batch,
            validate=Validation(held_out, model, codec, recipe),
            save=lambda module, scores: save(module, recipe, scores),
            unit="clips",
            preview=Preview(recipe, store, model, codec) if config.previews else None,
            unused_parameters=model.generator.num_levels > 1,
        ),
        config,
        recipe.folder,
    )


class Judge(nn.Module):
    """A discriminator and all images of a step: wrappers count on one forward pass for a backward pass."""

    def __init__(self, network: Discriminator) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, images: list[Tensor], told: GivenConditions, draws: Tensor, level: float
    ) -> list[Verdict]:
        """A verdict on each of up to three images; `draws` `[B, 3 n]` are theirs one after another."""
        share = draws.chunk(3, dim=1)
        return [self.network(image, told, part, level) for image, part in zip(images, share, strict=False)]


class GanStep:
    """The losses of both phases."""

    def __init__(self, model: GanModel, section: GanSection, config: Train) -> None:
        self._section, self._config = section, config
        self._conditions = model.config.conditions
        self._heads: Mapping[str, HeadKind] = model.config.heads
        self._num_levels = model.generator.num_levels
        self.game = make_game(section.loss)

    def level(self, step: int) -> float:
        """How far a growing network has grown: a function of the real clips seen before this step."""
        if not isinstance(self._section, ProgressiveSection):
            return 0.0
        seen = step * self._config.batch_size
        return level_of(seen, self._num_levels, self._section.images_per_phase)

    def discriminator_loss(self, modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
        """Of real clips, clips that the generator makes, and what lies between them."""
        game, told = self.game, from_batch(batch)
        model = _bare(modules[MODEL])
        network = _bare(modules[DISCRIMINATOR]).network
        assert isinstance(model, GanModel)
        assert isinstance(network, Discriminator)
        step = int(batch[STEP])
        level, has_r1 = self.level(step), game.needs_real_gradient(step)
        with torch.no_grad():
            model.level.fill_(level)
            real = network.at_level(model.encode(batch[REAL]), level)
            made = model(batch[NOISE], told, level).float()  # mixtures are made in full precision
        images = [real.requires_grad_(has_r1), made]
        if game.needs_mixture:
            share = batch[MIX].reshape(-1, *[1] * (real.ndim - 1))
            images.append(torch.lerp(real, made, share).requires_grad_())
        verdicts: list[Verdict] = modules[DISCRIMINATOR](images, told, batch[DRAWS], level)
        of_real, of_made = verdicts[0], verdicts[1]
        metrics = {
            "real": _mean(of_real.scores),
            "made": _mean(of_made.scores),
            SIZE: _mean([score.abs() for score in (*of_real.scores, *of_made.scores)]),
            "verdict": game.discriminator(of_real.scores, of_made.scores),
        }
        terms = [metrics["verdict"]]
        if game.needs_mixture:
            metrics["penalty"] = game.gradient_penalty(verdicts[2].scores, images[2])
            terms.append(metrics["penalty"])
        if has_r1:
            metrics["r1"] = game.r1(of_real.scores, real)
            terms.append(metrics["r1"])
        terms.append(game.drift(of_real.scores))
        heads = head_loss(self._conditions, self._heads, of_real.heads, told)
        terms += [self._section.head_weight * one for one in heads.values()]
        return self._loss(terms, metrics | heads, batch)

    def generator_loss(self, modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
        """Of what the discriminator says of new clips."""
        told = from_batch(batch)
        judge = _bare(modules[DISCRIMINATOR])
        level = self.level(int(batch[STEP]))
        made = modules[MODEL](batch[OTHER_NOISE], told, level)
        with frozen(judge):
            verdict: Verdict = judge([made], told, batch[DRAWS], level)[0]
        heads = head_loss(self._conditions, self._heads, verdict.heads, told)
        verdict_loss = self.game.generator(verdict.scores)
        terms = [verdict_loss, *(self._section.head_weight * one for one in heads.values())]
        return self._loss(terms, {"verdict": verdict_loss, **heads}, batch)

    @staticmethod
    def _loss(terms: list[Tensor], metrics: dict[str, Tensor], batch: Batch) -> Loss:
        weight = num_rows(batch[REAL])
        return Loss(torch.stack(terms).sum(), weight, metrics)


class Validation:
    """Whether the generator still makes different sounds, from the same noise and conditions every time.

    Without clips there are no scores, and a line that says so.
    """

    def __init__(self, told: ClipTold, model: GanModel, codec: Codec, recipe: Recipe) -> None:
        section = recipe.model
        assert isinstance(section, GanSection)
        self._settings, self._codec = section.collapse, codec
        self._watch = Collapse(section.collapse, recipe.folder / "checkpoints")
        crops = fixed_crops(told, _VALID_CLIPS)
        self._rows = [slice(first, first + _AT_ONCE) for first in range(0, len(crops), _AT_ONCE)]
        self._real: Tensor | None = None
        if not crops:
            if is_main_process():
                print("train: no clip of the split 'valid' can be validated on", file=sys.stderr)
            return
        self._latents, self._given = told.read(crops)
        generators = [torch.Generator().manual_seed(row) for row in range(len(crops))]
        self._noise = draw_noise(model.generator, model.shape.num_frames, generators)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The shares of clips that are silent and that are clicks, and how different clips are."""
        if not self._rows:
            return {}
        assert isinstance(model, GanModel)
        codec = self._codec.to(model.device)
        if self._real is None:
            latents = [self._latents[rows].to(model.device) for rows in self._rows]
            self._real = torch.cat([_audio(codec, model, one) for one in latents])
        made = torch.cat([_audio(codec, model, self._made(model, rows)) for rows in self._rows])
        found = collapse_statistics(made, self._real, codec.sample_rate, self._settings)
        self._watch.see(found)
        return found.scores()

    def _made(self, model: GanModel, rows: slice) -> Tensor:
        given = {name: one.to(model.device) for name, one in select(self._given, rows).items()}
        return model.make(self._noise[rows].to(model.device), given, model.config.num_frames)


def _audio(codec: Codec, model: GanModel, latents: Tensor) -> Tensor:
    """Latents `[B, D, T]` as mono samples `[B, N]` on the CPU."""
    audio: Tensor = latent_coding(codec, model.config.codec_info.latents).decode(latents)
    return audio.mean(1).cpu()


def save(model: nn.Module, recipe: Recipe, scores: dict[str, float]) -> None:
    """Write the finished model and its card."""
    assert isinstance(model, GanModel)
    with atomic_folder(recipe.folder / "model") as partial:
        model.save_pretrained(partial)
        write_card(partial / "README.md", recipe, model, scores)


def _mean(scores: list[Tensor]) -> Tensor:
    return torch.stack([one.mean() for one in scores]).mean()


def _bare(module: nn.Module) -> nn.Module:
    """Without a wrapper that would exchange gradients.

    Raises `UserError` under FSDP, with which losses that are made of gradients have not been tried.
    """
    if is_sharded(module):
        raise UserError(
            "adversarial models are not trained with FSDP yet: start the run without ACCELERATE_USE_FSDP"
        )
    return bare(module)


if __name__ == "__main__":
    stage_main("train", train_gan)
