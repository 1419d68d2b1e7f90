"""A new language model, of the family and shape that a recipe asks for.

A family is: a section of the schema, a class, and a line in `build_lm` here and in `FAMILIES` of `load.py`.
"""

from __future__ import annotations

import dataclasses

from ..core.conditions import Conditions
from ..core.schema_models import (
    CausalConvModel,
    LanguageModelSection,
    RNNModel,
    SampleRNNModel,
    TransformerModel,
    WaveNetModel,
)
from ..tokenize.store import TokenStore
from .language_model import LanguageModel
from .step_models.causal_conv import CausalConvConfig, CausalConvLM
from .step_models.rnn import RNNLM, RNNConfig
from .step_models.samplernn import SampleRNN, SampleRNNConfig
from .step_models.wavenet import WaveNet, WaveNetConfig
from .transformer import TransformerConfig, TransformerLM


def build_lm(
    model: LanguageModelSection, store: TokenStore, conditions: Conditions, num_frames: int
) -> LanguageModel:
    """A model with initial weights over the tokens of `store`, for crops of `num_frames`."""
    if isinstance(model, TransformerModel):
        lm = TransformerLM(transformer_config(model, store, conditions, num_frames))
        lm.use_attention(model.attention)
        return lm
    codec = dataclasses.asdict(store.info)
    shape = model.model_dump(exclude={"kind", "preset", *LanguageModelSection.model_fields})
    shape |= {name: tuple(value) for name, value in shape.items() if isinstance(value, list)}
    match model:
        case WaveNetModel():
            return WaveNet(WaveNetConfig.for_codec(codec, conditions, **shape))
        case CausalConvModel():
            return CausalConvLM(CausalConvConfig.for_codec(codec, conditions, **shape))
        case RNNModel():
            return RNNLM(RNNConfig.for_codec(codec, conditions, **shape))
        case SampleRNNModel():
            return SampleRNN(SampleRNNConfig.for_codec(codec, conditions, **shape))
    raise AssertionError(f"no family for the section {type(model).__name__}")


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
