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
from ..tokenize.store import TokenSplit, TokenStore
from .card import write_card
from .conditions import LabelVocabulary, drop_conditions
from .transformer import TransformerConfig, TransformerLM

# Validation looks at no more than this many clips, the same each time.
_VALID_CLIPS = 256


class TokenBatches:
    """Crops of stored clips, padded to one length, with their labels."""

    def __init__(self, split: TokenSplit, vocabulary: LabelVocabulary, num_frames: int) -> None:
        self.split = split
        self.num_frames = num_frames
        columns = {name: split.column(name) for name in vocabulary.names}
        self._labels = vocabulary.encode(columns) if vocabulary.names else torch.empty(len(split), 0).long()

    def labels(self, clips: list[int]) -> Tensor:
        """Table rows `[B, num_conditions]` of some clips."""
        return self._labels[clips]

    def collate(self, crops: list[tuple[int, int]], labels: Tensor) -> Batch:
        """`codes` [B, K, T], `labels` [B, num_conditions] and `mask` [B, T] for (clip, first frame) pairs."""
        found = [self.split.codes(clip, start, self.num_frames) for clip, start in crops]
        codes = np.zeros((len(found), found[0].shape[0], self.num_frames), dtype=np.int64)
        mask = np.zeros((len(found), self.num_frames), dtype=bool)
        for i, crop in enumerate(found):
            codes[i, :, : crop.shape[1]] = crop
            mask[i, : crop.shape[1]] = True
        return {"codes": torch.from_numpy(codes), "labels": labels, "mask": torch.from_numpy(mask)}


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
    vocabulary = vocabulary_of(split, model.conditions)
    batches = TokenBatches(split, vocabulary, num_frames)
    sampler = CropSampler(split.num_frames, num_frames, config.seed)

    def batch(step: int, rows: range) -> Batch:
        crops = sampler.draw(step, config.batch_size, rows)
        # Coins for the whole global batch, of which this process takes its rows: they cannot depend on how
        # many processes there are.
        coins = torch.Generator().manual_seed(step_seed(config.seed, 2, step))
        labels = torch.zeros(config.batch_size, len(vocabulary.names), dtype=torch.int64)
        labels[rows.start : rows.stop] = batches.labels([crop.clip for crop in crops])
        labels = drop_conditions(labels, model.condition_dropout, coins)[rows.start : rows.stop]
        return batches.collate([(crop.clip, crop.start) for crop in crops], labels)

    torch.manual_seed(config.seed)
    lm = TransformerLM(transformer_config(model, store, vocabulary))
    train(
        Job(
            modules={"lm": lm},
            phases=[Phase("lm", "lm", adamw(lm, config), _loss)],
            averaged="lm",
            batch=batch,
            validate=_Validation(store, vocabulary, num_frames, config.batch_size),
            save=lambda module, scores: _save(module, recipe, scores),
            unit="tokens",
        ),
        config,
        recipe.folder,
    )


def vocabulary_of(split: TokenSplit, conditions: list[str]) -> LabelVocabulary:
    """The values of the labels `conditions` that occur in `split`."""
    columns = {name: split.column(name) for name in conditions}
    rows = [{name: columns[name][i] for name in conditions} for i in range(len(split))]
    return LabelVocabulary.from_rows(conditions, rows)


def transformer_config(
    model: TransformerModel, store: TokenStore, vocabulary: LabelVocabulary
) -> TransformerConfig:
    """The architecture that a recipe asks for, over the tokens of `store`."""
    return TransformerConfig.for_codec(
        dataclasses.asdict(store.info),
        dim=model.dim,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        dropout=model.dropout,
        vocabulary=vocabulary,
    )


def _loss(modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
    loss = modules["lm"](batch["codes"], batch["labels"], batch["mask"])
    metrics = {f"codebook_{k}": value for k, value in enumerate(loss.per_codebook)}
    return Loss(loss.mean, loss.num_tokens, metrics)


class _Validation:
    """Mean cross-entropy in nats, over all tokens and for each codebook, on fixed held-out crops.

    Clips with a label value that does not occur in training are left out; with none left there are no scores.
    """

    def __init__(
        self, store: TokenStore, vocabulary: LabelVocabulary, num_frames: int, batch_size: int
    ) -> None:
        split = store.split("valid")
        columns = {name: split.column(name) for name in vocabulary.names}
        known = [
            i
            for i in range(len(split))
            if all(columns[name][i] in values for name, values in vocabulary.values.items())
        ]
        if not known and is_main_process():
            why = "each has a label value that the model never meets" if len(split) else "there are none"
            print(f"train: no clip of the split 'valid' can be validated on, because {why}", file=sys.stderr)
        chosen = np.random.default_rng(0).permutation(known)[:_VALID_CLIPS]
        self._batches: list[Batch] = []
        encoded = vocabulary.encode({name: [columns[name][i] for i in chosen] for name in vocabulary.names})
        cropper = TokenBatches(split, LabelVocabulary(), num_frames)
        for first in range(0, len(chosen), batch_size):
            part = chosen[first : first + batch_size]
            labels = (
                encoded[first : first + batch_size] if vocabulary.names else torch.empty(len(part), 0).long()
            )
            self._batches.append(cropper.collate([(int(i), 0) for i in part], labels))

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
