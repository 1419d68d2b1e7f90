"""Stage `train` of a distillation: a trained flow becomes a model that needs 1 to 8 steps.

    python -m tokkata.diffusion.distill RECIPE
    accelerate launch -m tokkata.diffusion.distill RECIPE

Consistency distillation (arXiv:2303.01469, algorithm 2). A flow takes every x_t along a curve to its clean
latents. The student learns to jump there from anywhere on a curve, f(x_t, t): what it finds at a time has to
be what an average of its own earlier weights finds a little further along, where a step of the frozen teacher
leads. At time 0 nothing is left to jump, and from there the right answer spreads to all times. Latents are
then made in one jump, or in some, each from latents that were made noisy again, but less.

Why this and not an adversary (arXiv:2311.17042): there is no second network to build, balance and pay for;
the loss is a regression that falls or does not; the teacher's guidance becomes part of what is learned, so a
step of the student costs half of a guided one; and it can be asked for any number of steps. An adversary
would make single steps sharper where there is data and time enough to tune it.

Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..core.conditions import GivenConditions, hide_all, join
from ..core.errors import UserError
from ..core.job import Batch, Job, Phase
from ..core.loop import train
from ..core.optimizer import adamw
from ..core.run import stage_main
from ..core.schema import Recipe
from ..core.schema_diffusion import ConsistencyModel
from ..core.sharding import local_tensors
from ..tokenize.features.clip_conditions import ClipConditions
from ..tokenize.store import TokenSplit, TokenStore
from .diffusion_model import DiffusionLoss, DiffusionModel
from .generate import guide
from .latent_batches import LatentBatches
from .load import load_diffusion
from .networks.dit import DiT
from .networks.unet import UNet1d
from .objective import Consistency, Flow
from .preview import Preview
from .train import Validation, latents_to_train, loss, save

_HUBER = 0.00054
"""Of the pseudo-Huber distance, arXiv:2310.14189, sec. 3.3: c divided by the root of the dimensions."""


@dataclasses.dataclass(frozen=True)
class _Told:
    """What networks know of the clips of a batch besides their noisy latents."""

    given: GivenConditions
    mask: Tensor | None  # [B, T] bool
    known: Tensor | None  # [B, T] bool
    x0: Tensor  # [B, D, T], of which only what is `known` is told


class Teacher:
    """A trained flow that does not change."""

    def __init__(self, model: DiffusionModel, cfg_scale: float = 1.0) -> None:
        self.model = model.requires_grad_(False).eval()
        self.cfg_scale = cfg_scale

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @torch.no_grad()
    def step(self, x: Tensor, time: Tensor, before: Tensor, told: _Told) -> Tensor:
        """Latents x [B, D, T] at `time` [B] as the flow has them at `before` [B]: one step of Heun's."""
        length = (before - time)[:, None, None]
        slope = self._slope(x, time, told)
        there = self._slope(x + length * slope, before, told)
        return x + length * (slope + there) / 2

    def _slope(self, x: Tensor, time: Tensor, told: _Told) -> Tensor:
        """dx/dt, guided; both halves of guidance are one batch."""
        model = self.model.to(x.device)
        inputs = model.inputs(x, told.known, told.x0)
        if self.cfg_scale == 1 or not told.given:
            found: Tensor = model.network(inputs, time, told.given, mask=told.mask)
            return found.float()
        mask = None if told.mask is None else told.mask.repeat(2, 1)
        both = join(told.given, hide_all(told.given))
        output = model.network(inputs.repeat(2, 1, 1), time.repeat(2), both, mask=mask)
        conditional, hidden = output.float().chunk(2)
        return guide(conditional, hidden, self.cfg_scale, 0.0)


class Distillation(nn.Module):
    """A student, the average of its weights that it learns from, and a teacher; `forward` is the loss.

    The teacher is no part of the state: checkpoints need not hold what does not change.
    """

    def __init__(self, teacher: Teacher, *, num_intervals: int, target_decay: float) -> None:
        """The student begins as the teacher, whose objective must be a `Flow`."""
        super().__init__()
        flow = teacher.model.objective
        assert isinstance(flow, Flow)
        self.objective = Consistency(num_intervals=num_intervals, shift=flow.shift)
        config = dataclasses.replace(teacher.model.config, objective=self.objective)
        self.student = DiffusionModel(config)
        self.student.load_state_dict(teacher.model.state_dict())
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        self._teacher = teacher
        self._target_decay = target_decay

    @property
    def blocks(self) -> list[nn.Module]:
        """Those of both networks, for checkpointing and compiling."""
        return [*self.student.blocks, *self.target.blocks]

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        time: Tensor,
        given: GivenConditions | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
    ) -> DiffusionLoss:
        """The distance between two jumps from one curve, for what `DiffusionModel.forward` takes.

        Each clip's is the pseudo-Huber distance (arXiv:2310.14189, eq. 7) of the root mean square difference.
        """
        told = _Told(given or {}, mask, known, self.student.normalise(latents))
        x = self.objective.add_noise(told.x0, noise, time)
        before = self.objective.before(time)
        with torch.no_grad():
            goal = self._jump(self.target, self._teacher.step(x, time, before, told), before, told)
        squares = (self._jump(self.student, x, time, told) - goal).square().mean(1)
        counted = torch.ones_like(squares, dtype=torch.bool) if mask is None else mask
        if known is not None:
            counted = counted & ~known
        num_frames = counted.sum(1)  # of each clip
        mean_square = (squares * counted).sum(1) / num_frames.clamp(min=1)
        distance = (mean_square + _HUBER**2).sqrt() - _HUBER
        total = num_frames.sum()
        return DiffusionLoss((distance * num_frames).sum() / total.clamp(min=1), total)

    def _jump(self, model: DiffusionModel, x: Tensor, time: Tensor, told: _Told) -> Tensor:
        """f(x, t), [B, D, T]."""
        output = model.network(model.inputs(x, told.known, told.x0), time, told.given, mask=told.mask)
        return self.objective.denoised(output.float(), x, time).x0

    @torch.no_grad()
    def update_target(self, step: int) -> float:
        """Take the student's weights after step number `step` (from 0) into the target; returns the decay.

        That is at most (2 + step) / (11 + step), a function of the step alone, as in `core/average.py`.
        """
        decay = min(self._target_decay, (2 + step) / (11 + step)) if self._target_decay else 0.0
        torch._foreach_lerp_(
            local_tensors(self.target.parameters()), local_tensors(self.student.parameters()), 1 - decay
        )
        return decay


def distill(recipe: Recipe) -> None:
    """Write `checkpoints/`, `logs/` and `model/`."""
    config, section = recipe.train, recipe.model
    assert isinstance(section, ConsistencyModel)
    store = TokenStore(recipe.folder / "tokens")
    split = latents_to_train(store, section.sample_posterior)
    num_frames = max(1, round(config.crop_s * store.info.frame_rate))
    teacher = Teacher(_load_teacher(section, store, split, num_frames), section.cfg_scale)
    torch.manual_seed(config.seed)
    model = Distillation(teacher, num_intervals=section.num_intervals, target_decay=section.target_decay)
    for one in (model.student, model.target, teacher.model):
        assert isinstance(one.network, DiT | UNet1d)
        one.network.use_attention(section.attention)
    student = model.student.config
    batches = LatentBatches(
        ClipConditions(store, split, student.conditions, num_frames),
        model.objective,
        config,
        condition_dropout=section.condition_dropout,
        mask_conditions=student.mask_conditions,
        sample_posterior=section.sample_posterior,
    )
    valid = store.split("valid")
    held_out = ClipConditions(store, valid, student.conditions, num_frames)
    validation = LatentBatches(held_out, model.objective, config).validation() if len(valid) else []

    def after_step(step: int, batches: list[Batch]) -> Mapping[str, Tensor]:
        return {"target_decay": torch.tensor(model.update_target(step))}

    preview = Preview(recipe, store, model.student) if config.previews else None

    def preview_student(module: nn.Module, folder: Path) -> None:
        assert isinstance(module, Distillation)
        assert preview is not None
        preview(module.student, folder)

    def save_student(module: nn.Module, scores: dict[str, float]) -> None:
        assert isinstance(module, Distillation)
        save(module.student, recipe, scores)

    train(
        Job(
            modules={"model": model},
            phases=[Phase("model", "model", adamw(model, config), loss)],
            averaged="model",
            batch=batches.batch,
            validate=Validation(validation),
            save=save_student,
            unit="frames",
            after_step=after_step,
            preview=None if preview is None else preview_student,
        ),
        config,
        recipe.folder,
    )


def _load_teacher(
    section: ConsistencyModel, store: TokenStore, split: TokenSplit, num_frames: int
) -> DiffusionModel:
    """Raises `UserError` if there is none, or one that cannot be distilled on these clips."""
    name = f"model.teacher {section.teacher}"
    model = load_diffusion(section.teacher, revision=section.teacher_revision)
    if not isinstance(model.objective, Flow):
        raise UserError(
            f"{name} has the objective {model.objective.kind}: only a model with the objective flow can be"
            " distilled"
        )
    model.config.codec_info.check_matches(store.info, f"the latents are not those of {name}")
    longest = model.network.max_frames
    if num_frames > longest:
        raise UserError(
            f"train.crop_s: {num_frames / store.info.frame_rate:g} s are more than the"
            f" {longest / store.info.frame_rate:g} s of {name}: lower it"
        )
    if section.cfg_scale != 1 and not len(model.config.conditions):
        raise UserError(f"model.cfg_scale {section.cfg_scale:g}: {name} is told nothing, so it must be 1")
    for condition in model.config.conditions:
        if condition.kind == "sequence" and condition.name not in store.features:
            raise UserError(
                f"{name} is told '{condition.name}', which the latents do not have: add it to"
                " tokenize.features"
            )
        if condition.kind == "label":
            unknown = sorted({str(v) for v in split.column(condition.name) if v not in condition.values})
            if unknown:
                raise UserError(
                    f"{name} has never met the {condition.name} {unknown[0]}: train on clips whose labels it"
                    " knows"
                )
    return model


if __name__ == "__main__":
    stage_main("train", distill)
