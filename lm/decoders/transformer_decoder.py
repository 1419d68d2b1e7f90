"""How a Transformer generates: its own modules over buffers of keys and values that never move.

Shapes: R rows, K codebooks, S steps, V codebook size.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ...core.conditions import GivenConditions
from ...core.errors import UserError
from ..transformer import KVCache, TransformerLM
from .decoder import Decoder, Prepared, Weights
from .gpu.graph_decoder import GraphTransformer
from .kernel_decoder import PackedTransformer
from .native import load_kernel
from .transformer_kernel import MAX_HEAD_DIM


def prepare_transformer(lm: TransformerLM, weights: Weights) -> Prepared:
    """The fastest form of `lm` for its device; raises `UserError` for weights that it cannot have there."""
    if lm.device.type == "cuda":
        if weights == "int8":
            raise UserError("weights cannot be 'int8' on a GPU: choose 'bf16'")
        return GraphTransformer(lm if weights == "fp32" else copy.deepcopy(lm).to(torch.bfloat16).eval())
    if lm.device.type != "cpu":
        if weights != "fp32":
            raise UserError(f"weights cannot be '{weights}' on {lm.device.type}: choose 'fp32'")
        return PlainTransformer(lm)
    if weights == "fp32" and load_kernel("transformer") is None:
        return PlainTransformer(lm)  # as fast as PyTorch can be
    if lm.config.head_dim > MAX_HEAD_DIM:
        if weights == "fp32":
            return PlainTransformer(lm)
        raise UserError(
            f"weights cannot be '{weights}' for heads of width {lm.config.head_dim}, above {MAX_HEAD_DIM}:"
            " choose 'fp32'"
        )
    return PackedTransformer(lm, weights)


class PlainTransformer(Prepared):
    """The model as it was trained; what all other forms are tested against."""

    def __init__(self, lm: TransformerLM) -> None:
        self.lm = lm

    def decoder(self, conditions: GivenConditions, num_rows: int, max_steps: int) -> Decoder:
        """A decoder for `num_rows` rows under `conditions`, for at most `max_steps` steps of input."""
        return PlainDecoder(self.lm, conditions, num_rows, max_steps)


class PlainDecoder(Decoder):
    """Runs the model itself, with a cache."""

    def __init__(self, lm: TransformerLM, conditions: GivenConditions, num_rows: int, max_steps: int) -> None:
        self._lm = lm
        fused = lm.conditioner(conditions, num_rows)
        num_prepended = 0 if fused.prefix is None else fused.prefix.shape[1]
        dtype = lm.head.weight.dtype
        self._cache = KVCache(lm.config, num_rows, num_prepended + max_steps, lm.device, dtype)
        self._cache.fused = fused

    def feed(self, tokens: Tensor) -> Tensor:
        """[R, K, S] to [R, K, V]."""
        return self._lm.next_logits(tokens, self._cache)
