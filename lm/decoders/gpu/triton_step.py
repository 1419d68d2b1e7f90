"""A step of a Transformer for few rows as some large Triton kernels: eight a layer, six without a memory.

PyTorch needs about 25 a layer, each of which takes longer to start than to read its weights. This module says
which of the model's own parameters go into which kernel.

Shapes: as in `fused_step.py`; P parts of the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ....core.rms_norm import RMSNorm
from ...transformer import Block, KVCache, TransformerLM
from ..decoder import Draft
from .fused_step import FusedStep, gain_of, runs_triton

if TYPE_CHECKING:
    from .triton_linear import Norm

MAX_INPUTS = 16384
MAX_HEAD_DIM = 256


class TritonStep(FusedStep):
    """Launches the kernels."""

    @classmethod
    def can_run(cls, lm: TransformerLM, num_rows: int) -> bool:
        """See `FusedStep`."""
        config = lm.config
        return (
            super().can_run(lm, num_rows)
            and max(config.dim, config.hidden_dim) <= MAX_INPUTS
            and config.head_dim <= MAX_HEAD_DIM
            and runs_triton(lm.device)
        )

    def __init__(self, lm: TransformerLM, cache: KVCache, position: Tensor) -> None:
        super().__init__(lm, cache, position)
        config, device, dtype = lm.config, lm.device, lm.head.weight.dtype
        num_rows, length = cache.keys.shape[1], cache.max_length
        num_parts = _num_parts(num_rows * config.num_heads, length)
        shape = num_parts, num_rows, config.num_heads
        self._x = torch.empty(num_rows, config.dim, device=device)
        self._qkv = torch.empty(
            num_rows, config.dim + 2 * config.kv_heads * config.head_dim, device=device, dtype=dtype
        )
        self._query = torch.empty(num_rows, config.dim, device=device, dtype=dtype)
        self._parts = torch.empty(*shape, config.head_dim, device=device)
        self._logs = torch.empty(shape, device=device)
        self._hidden = torch.empty(num_rows, config.hidden_dim, device=device, dtype=dtype)

    def __call__(self, draft: Draft) -> None:
        """See `FusedStep`."""
        from .triton_ends import embed
        from .triton_linear import linear

        lm, position, fused = self._lm, self._position, self._cache.fused
        assert fused is not None
        embed(
            draft.tokens,
            position,
            lm.token_embedding.weight,
            self._x,
            added=fused.added,
            frequencies=None if self._is_rotary else self._frequencies,
            num_prepended=self._num_prepended,
            num_hidden=self._num_hidden,
        )
        for block in lm.blocks:
            assert isinstance(block, Block)
            self._block(block)
        linear(self._x, lm.head.weight, self.logits.flatten(1), norm=_norm(lm.norm))
        self._sample(draft, position)
        position += 1

    def _block(self, block: Block) -> None:
        from .triton_attention import NewKeys, attend
        from .triton_linear import linear

        cache, fused, attention = self._cache, self._cache.fused, block.attention
        assert fused is not None
        linear(self._x, attention.qkv.weight, self._qkv, norm=_norm(block.attention_norm))
        new = NewKeys(
            self._position,
            self._num_prepended,
            gain_of(attention.q_norm),
            gain_of(attention.k_norm),
            eps=1e-6,
            frequencies=self._frequencies if self._is_rotary else None,
            num_hidden=self._num_hidden,
        )
        keys, values = cache.keys[attention.layer], cache.values[attention.layer]
        attend(self._qkv, keys, values, self._parts, self._logs, new=new, seen=fused.prefix_mask)
        weight = attention.out.weight
        linear(self._parts, weight, self._x, epilogue="add", weights_of_parts=self._logs)
        if block.cross_attention is not None:
            assert block.cross_norm is not None
            cross = block.cross_attention
            linear(self._x, cross.query.weight, self._query, norm=_norm(block.cross_norm))
            keys, values = cache.memories[cross.layer]
            parts, logs = self._parts[:1], self._logs[:1]
            attend(self._query, keys, values, parts, logs, seen=self._memory_seen)
            linear(parts[0].flatten(1), cross.out.weight, self._x, epilogue="add")
        feed_forward = block.feed_forward
        linear(
            self._x,
            feed_forward.up.weight,
            self._hidden,
            norm=_norm(block.feed_forward_norm),
            epilogue="swiglu" if feed_forward.is_gated else "gelu",
        )
        linear(self._hidden, feed_forward.down.weight, self._x, epilogue="add")


def _num_parts(num_queries: int, length: int) -> int:
    """Parts of the keys: enough programs for a GPU, but no more than pay for being joined."""
    parts = 1
    while parts < 4 and parts * num_queries < 256 and 128 * parts < length:
        parts *= 2
    return parts


def _norm(module: nn.Module) -> Norm:
    from .triton_linear import Norm

    if isinstance(module, nn.LayerNorm):
        return Norm("layernorm", module.weight, module.bias, module.eps)
    assert isinstance(module, RMSNorm)
    assert module.eps is not None
    return Norm("rmsnorm", module.weight, None, module.eps)
