"""Stage `train` of a token model's run: a language model over the token store, in the shared loop.

    python -m tokkata.lm.train RECIPE
    accelerate launch -m tokkata.lm.train RECIPE
    torchrun --nproc_per_node 2 -m tokkata.lm.train RECIPE          (many processes on a CPU)

Shapes: B batch, K codebooks, T frames.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.files import atomic_folder
from ..core.loop import Batch, Job, Loss, Phase, adamw, step_seed, train
from ..core.run import is_main_process, stage_main
from ..core.sampler import CropSampler
from ..core.schema import Recipe, TransformerModel
from ..tokenize.store import TokenStore
from .batches import TokenBatches, conditions_of, from_batch
from .card import write_card
from .conditions import Conditions, condition_coins
from .transformer import TransformerConfig, TransformerLM

# Validation looks at no more than this many clips, the same each time.
_VALID_CLIPS = 256


def train_lm(recipe: Recipe) -> None:
    """Write `checkpoints/`, `logs/` and `model/`."""
    config, model = recipe.train, recipe.model
    assert isinstance(model, TransformerModel)
    store = TokenStore(recipe.folder / "tokens")
    store.require("codes", "a language model")
    split = store.split("train")
    if not len(split):
        raise UserError(
            "there are no tokens in the split 'train': lower the fractions held out, or add audio"
        )
    num_frames = max(1, round(config.crop_s * store.info.frame_rate))
    conditions = conditions_of(store, split, model.conditions)
    batches = TokenBatches(store, split, conditions, num_frames)
    sampler = CropSampler(split.num_frames, num_frames, config.seed)

    def batch(step: int, rows: range) -> Batch:
        crops = [(crop.clip, crop.start) for crop in sampler.draw(step, config.batch_size, rows)]
        # Coins for the whole global batch, of which this process takes its rows: they cannot depend on how
        # many processes there are.
        coins = torch.Generator().manual_seed(step_seed(config.seed, 2, step))
        keep = condition_coins(config.batch_size, model.condition_dropout, coins)[rows.start : rows.stop]
        given = {name: one.hide(keep) for name, one in batches.given(crops).items()}
        return batches.collate(crops, given)

    torch.manual_seed(config.seed)
    lm = TransformerLM(transformer_config(model, store, conditions, num_frames))
    lm.use_attention(model.attention)
    train(
        Job(
            modules={"lm": lm},
            phases=[Phase("lm", "lm", adamw(lm, config), _loss)],
            averaged="lm",
            batch=batch,
            validate=_Validation(store, conditions, num_frames, config.batch_size),
            save=lambda module, scores: _save(module, recipe, scores),
            unit="tokens",
        ),
        config,
        recipe.folder,
    )


def transformer_config(
    model: TransformerModel, store: TokenStore, conditions: Conditions, num_frames: int
) -> TransformerConfig:
    """The architecture that a recipe asks for, over the tokens of `store`, for crops of `num_frames`."""
    return TransformerConfig.for_codec(
        dataclasses.asdict(store.info),
        conditions,
        window_frames=num_frames,
        pattern=model.pattern,
        delays=None if model.delays is None else tuple(model.delays),
        dim=model.dim,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        feed_forward_dim=model.feed_forward_dim,
        norm=model.norm,
        activation=model.activation,
        positions=model.positions,
        qk_norm=model.qk_norm,
        dropout=model.dropout,
    )


def _loss(modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
    loss = modules["lm"](batch["codes"], from_batch(batch), batch["mask"])
    metrics = {f"codebook_{k}": value for k, value in enumerate(loss.per_codebook)}
    return Loss(loss.mean, loss.num_tokens, metrics)


class _Validation:
    """Mean cross-entropy in nats, over all tokens and for each codebook, on fixed held-out crops.

    Clips with a label value that does not occur in training are left out; with none left there are no scores.
    """

    def __init__(self, store: TokenStore, conditions: Conditions, num_frames: int, batch_size: int) -> None:
        split = store.split("valid")
        batches = TokenBatches(store, split, conditions, num_frames)
        known = batches.known(range(len(split)))
        if not known and is_main_process():
            why = "each has a label value that the model never meets" if len(split) else "there are none"
            print(f"train: no clip of the split 'valid' can be validated on, because {why}", file=sys.stderr)
        chosen = np.random.default_rng(0).permutation(known)[:_VALID_CLIPS]
        self._batches: list[Batch] = []
        for first in range(0, len(chosen), batch_size):
            crops = [(int(clip), 0) for clip in chosen[first : first + batch_size]]
            self._batches.append(batches.collate(crops, batches.given(crops)))

    def __call__(self, lm: nn.Module) -> dict[str, float]:
        device = next(lm.parameters()).device
        total: Tensor | None = None
        count = 0.0
        for batch in self._batches:
            loss = _loss({"lm": lm}, {name: t.to(device) for name, t in batch.items()})
            values = torch.stack([loss.mean, *loss.metrics.values()]) * loss.weight
            total = values if total is None else total + values
            count += float(loss.weight)
        if total is None:
            return {}
        means = (total / count).tolist()
        return {"loss": means[0]} | {f"codebook_{k}": value for k, value in enumerate(means[1:])}


def _save(lm: nn.Module, recipe: Recipe, scores: dict[str, float]) -> None:
    assert isinstance(lm, TransformerLM)
    with atomic_folder(recipe.folder / "model") as partial:
        lm.save_pretrained(partial)
        write_card(partial / "README.md", recipe, lm, scores)


if __name__ == "__main__":
    stage_main("train", train_lm)
