"""Fine-tuning: training that begins from a model that is there, a MusicGen or one of Tokkata's.

Shape, pattern, window and conditions are the source's; so are all weights. Tokens must be of its codec, and
the features that it is told of its encoders. Values of labels that it has not met, and conditions that are
added, begin at zero: summed into the steps, they change nothing before they are trained.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..core.conditions import Condition, Conditions, label_condition
from ..core.errors import UserError
from ..core.schema_conditions import ModelCondition
from ..core.schema_models import TransformerModel
from ..tokenize.codec import CodecInfo
from ..tokenize.features.clip_conditions import conditions_of
from ..tokenize.features.inherited import inherited_feature
from ..tokenize.store import TokenSplit, TokenStore
from .load import load_lm
from .lora import add_adapters
from .transformer import TransformerConfig, TransformerLM


def begin_from_source(
    model: TransformerModel, store: TokenStore, split: TokenSplit, num_frames: int
) -> TransformerLM:
    """The model that `model.init_from` names, ready to be trained on `split` in crops of `num_frames`.

    Raises `UserError` if it cannot be had, is no Transformer, or does not fit the tokens of `store`.
    """
    assert model.init_from is not None
    name = model.init_from
    source = load_lm(name, revision=model.init_revision)
    if not isinstance(source, TransformerLM):
        raise UserError(f"model.init_from {name} is a {source.config.kind}, not a transformer")
    _check_codec(name, source.config, store.info)
    conditions = inherited_conditions(name, source.config.conditions, store, split, model.conditions)
    window = source.config.window_frames
    config = dataclasses.replace(
        source.config,
        conditions=conditions,
        codec=dataclasses.asdict(store.info),
        window_frames=None if window is None else max(window, num_frames),
        dropout=model.dropout if "dropout" in model.model_fields_set else source.config.dropout,
    )
    lm = with_weights_of(source, config)
    lm.use_attention(model.attention)
    if model.lora is not None:
        add_adapters(lm, model.lora, name)
        if model.conditions:
            lm.conditioner.requires_grad_(True)  # what is added has nothing to adapt yet
    return lm


def _check_codec(name: str, config: TransformerConfig, tokens: CodecInfo) -> None:
    where = f"the tokens do not fit model.init_from {name}"
    if config.codec:
        CodecInfo.from_json(config.codec, f"the codec of {name}").check_matches(tokens, where)
    for setting in ("num_codebooks", "codebook_size", "frame_rate"):
        theirs, mine = getattr(tokens, setting), getattr(config, setting)
        if theirs != mine:
            raise UserError(f"{where}: {setting} is {theirs}, but {mine} is needed")


def inherited_conditions(
    name: str,
    inherited: Conditions,
    store: TokenStore,
    split: TokenSplit,
    added: list[ModelCondition],
) -> Conditions:
    """The conditions of the source called `name`, with what `split` adds to their values, then the `added`.

    Raises `UserError` if the store does not have what the source is told, or has it from another encoder.
    """
    for one in added:
        if one.name in inherited.by_name:
            raise UserError(
                f"model.conditions names '{one.name}', which model.init_from {name} is told already:"
                " remove it"
            )
    kept = [_continued(name, condition, store, split) for condition in inherited]
    return Conditions((*kept, *conditions_of(store, split, added)))


def _continued(source: str, condition: Condition, store: TokenStore, split: TokenSplit) -> Condition:
    name = condition.name
    if condition.kind == "number":
        return condition
    if condition.kind != "sequence":
        found = label_condition(name, split.column(name), condition.fuse)
        old, new = condition.values, found.values
        if found.kind != condition.kind or type(old[0]) is not type(new[0]):
            raise UserError(
                f"label '{name}' is of another kind in the corpus than in model.init_from {source}"
            )
        return dataclasses.replace(condition, values=(*old, *(value for value in new if value not in old)))
    return inherited_feature(f"model.init_from {source}", condition, store)


@torch.no_grad()
def with_weights_of(source: TransformerLM, config: TransformerConfig) -> TransformerLM:
    """A model of `config`, which only adds to that of `source`, with its weights.

    What is added and summed into the steps changes nothing yet, and neither does cross-attention that is new.
    """
    lm = TransformerLM(config)
    mine, given = lm.state_dict(), source.state_dict()
    # New cross-attention ends in zeros: were what it attends to zero as well, neither would have a gradient.
    starts_random = {c.name for c in config.conditions if c.fuse == "cross" and not source.config.has_memory}
    for name, tensor in mine.items():
        if name == "conditioner.table.weight":
            _fill_table(lm, source, starts_random)
        elif name in given:
            tensor.copy_(given[name])
        elif name.startswith("conditioner.projections."):
            if name.split(".")[2] not in starts_random:
                tensor.zero_()
        else:
            assert "cross_" in name, f"{name} has no equal in the source"
            if name.endswith("cross_attention.out.weight"):
                tensor.zero_()
    lost = given.keys() - mine.keys()
    assert not lost, f"{lost} of the source have no place"
    return lm


def _fill_table(lm: TransformerLM, source: TransformerLM, starts_random: set[str]) -> None:
    """Rows of values that the source knows, and zeros for others."""
    for condition in lm.config.conditions:
        if not condition.has_rows:
            continue
        rows = _rows(lm, condition)
        if condition.name not in starts_random:
            rows.zero_()
        if condition.name in source.config.conditions.by_name:
            known = _rows(source, source.config.conditions[condition.name])
            rows[: len(known)] = known


def _rows(lm: TransformerLM, condition: Condition) -> Tensor:
    """A condition's part of the table of embeddings: hidden, then its values."""
    table, offset = lm.conditioner.table, lm.conditioner.offsets[condition.name]
    assert isinstance(table, nn.Embedding)
    return table.weight[offset : offset + condition.num_rows]
