"""Stage `train` of a token model's run: a language model over the token store, in the shared loop.

    python -m tokkata.lm.train RECIPE
    accelerate launch -m tokkata.lm.train RECIPE
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m tokkata.lm.train RECIPE      (many, on a CPU)

Shapes: B batch, K codebooks, T frames.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.files import atomic_folder
from ..core.job import Batch, Job, Loss, Phase
from ..core.loop import train
from ..core.optimizer import adamw
from ..core.run import is_main_process, stage_main
from ..core.schema import Recipe
from ..core.schema_models import LanguageModelSection, TransformerModel
from ..tokenize.features.clip_conditions import conditions_of, from_batch
from ..tokenize.store import TokenStore
from .build import build_lm
from .card import write_card
from .feeding import STATE, Feed, Source, make_feed
from .finetune import begin_from_source
from .flops import flops_per_token
from .language_model import LanguageModel
from .lora import ADAPTER_FOLDER, has_adapters, merged, save_adapters
from .preview import Preview
from .step_models.samplernn import StatefulLoss
from .step_models.step_model import StepModel
from .transformer import TransformerLM


def train_lm(recipe: Recipe) -> None:
    """Write `checkpoints/`, `logs/` and `model/`."""
    config, model = recipe.train, recipe.model
    assert isinstance(model, LanguageModelSection)
    store = TokenStore(recipe.folder / "tokens")
    store.require("codes", "a language model")
    split = store.split("train")
    if not len(split):
        raise UserError(
            "there are no tokens in the split 'train': lower the fractions held out, or add audio"
        )
    num_frames = max(1, round(config.crop_s * store.info.frame_rate))
    torch.manual_seed(config.seed)
    lm: LanguageModel
    if isinstance(model, TransformerModel) and model.init_from is not None:
        lm = begin_from_source(model, store, split, num_frames)
    else:
        lm = build_lm(model, store, conditions_of(store, split, model.conditions), num_frames)
    conditions = lm.config.conditions
    if isinstance(lm, StepModel) and is_main_process():
        print(f"train: {lm.config.summary()}", file=sys.stderr, flush=True)
    feed = make_feed(lm, Source(store, conditions, model.condition_dropout), config, num_frames)
    train(
        Job(
            modules={"lm": lm},
            phases=[Phase("lm", "lm", adamw(lm, config), _loss)],
            averaged="lm",
            batch=feed.batch,
            validate=_Validation(feed),
            save=lambda module, scores: _save(module, recipe, scores),
            unit="tokens",
            carried=feed.carried(),
            flops_per_unit=flops_per_token(lm, feed.source.batches(split, num_frames)),
            preview=Preview(recipe, store, lm) if config.previews else None,
        ),
        config,
        recipe.folder,
    )


def _loss(modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
    more: dict[str, Any] = {name: batch[name] for name in ("counted", "begins", "clips") if name in batch}
    state = {name.removeprefix(STATE): t for name, t in batch.items() if name.startswith(STATE)}
    if state:
        more["state"] = state
    loss = modules["lm"](batch["codes"], from_batch(batch), batch["mask"], **more)
    metrics = {f"codebook_{k}": value for k, value in enumerate(loss.per_codebook)}
    after = loss.state if isinstance(loss, StatefulLoss) else {}
    return Loss(loss.mean, loss.num_tokens, metrics, {STATE + name: t for name, t in after.items()})


class _Validation:
    """Mean cross-entropy in nats, over all tokens and for each codebook, on fixed held-out clips.

    Without clips there are no scores, and a line that says why.
    """

    def __init__(self, feed: Feed) -> None:
        self._sequences = feed.validation()
        if not self._sequences and is_main_process():
            is_empty = not len(feed.source.store.split("valid"))
            why = "there are none" if is_empty else "each has a label value that the model never meets"
            print(f"train: no clip of the split 'valid' can be validated on, because {why}", file=sys.stderr)

    def __call__(self, lm: nn.Module) -> dict[str, float]:
        device = next(lm.parameters()).device
        total: Tensor | None = None
        count = 0.0
        for sequence in self._sequences:
            carried: Mapping[str, Tensor] = {}
            for batch in sequence:
                loss = _loss({"lm": lm}, {name: t.to(device) for name, t in batch.items()} | dict(carried))
                carried = loss.carried
                values = torch.stack([loss.mean, *loss.metrics.values()]) * loss.weight
                total = values if total is None else total + values
                count += float(loss.weight)
        if total is None:
            return {}
        means = (total / count).tolist()
        return {"loss": means[0]} | {f"codebook_{k}": value for k, value in enumerate(means[1:])}


def _save(lm: nn.Module, recipe: Recipe, scores: dict[str, float]) -> None:
    assert isinstance(lm, LanguageModel)
    with atomic_folder(recipe.folder / "model") as partial:
        if isinstance(lm, TransformerLM) and has_adapters(lm):
            save_adapters(lm, partial / ADAPTER_FOLDER)
            lm = merged(lm)
        lm.save_pretrained(partial)
        write_card(partial / "README.md", recipe, lm, scores)


if __name__ == "__main__":
    stage_main("train", train_lm)
