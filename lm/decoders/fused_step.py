"""A step of a Transformer for few rows as some large kernels: eight a layer, six without a memory.

PyTorch needs about 25 a layer, each of which takes longer to start than to read its weights. This module says
which of the model's own parameters go into which kernel; nothing is held twice. The residual stream is
float32, what kernels hand to one another otherwise has the number format of the weights.

Shapes: B clips, R rows (B, or 2 B under guidance), K codebooks, V codebook size, D model width, H heads, Dh
width of a head, M states of the memory, P parts of the keys.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...core.rms_norm import RMSNorm
from ...core.rotary import rotary_frequencies
from ..transformer import (
    Attention,
    Block,
    CrossAttention,
    FeedForward,
    KVCache,
    TransformerLM,
    sinusoid_frequencies,
)
from .decoder import Draft

if TYPE_CHECKING:
    from .triton_linear import Norm

MAX_ROWS = 8
"""With 16, PyTorch's products are faster on an H200."""
MAX_INPUTS = 16384
MAX_HEAD_DIM = 256
PLAIN = {
    nn.ModuleList,
    Block,
    Attention,
    CrossAttention,
    FeedForward,
    nn.Linear,
    nn.LayerNorm,
    RMSNorm,
    nn.Dropout,
    nn.Identity,
}
"""Modules of which we know what they do."""


@functools.cache
def runs_triton(device: torch.device) -> bool:
    """Whether a small trial of a kernel is right; a line says why not, unless Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return False
    from triton.errors import TritonError

    from . import triton_linear

    x, weight = torch.ones(1, 8, device=device), torch.ones(2, 8, device=device)
    out = torch.zeros(1, 2, device=device)
    try:
        triton_linear.linear(x, weight, out)
        reason = None if bool((out == 8).all()) else "its results are wrong"
    # Triton compiles a launcher in C for each kernel, so it needs a compiler and Python's headers.
    except (OSError, RuntimeError, subprocess.CalledProcessError, TritonError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if reason is not None:
        print(f"generation: Triton cannot be used on {device} ({reason}); using PyTorch", file=sys.stderr)
    return reason is None


def can_fuse(lm: TransformerLM, num_rows: int) -> bool:
    """Whether the kernels are made for a model's shape and this many rows."""
    config, dtype = lm.config, lm.head.weight.dtype
    # Their weights are all that is read of them, so they must be what they seem (and not LoRA's, say).
    is_plain = all(type(module) in PLAIN for module in (lm.norm, lm.head, *lm.blocks.modules()))
    has_one_dtype = all(parameter.dtype == dtype for parameter in lm.parameters())
    return (
        is_plain
        and has_one_dtype
        and dtype in (torch.float32, torch.bfloat16)
        and num_rows <= MAX_ROWS
        and max(config.dim, config.hidden_dim) <= MAX_INPUTS
        and config.head_dim <= MAX_HEAD_DIM
        and runs_triton(lm.device)
    )


class FusedStep:
    """Launches the kernels of a step, for a cache whose buffers stay where they are."""

    def __init__(self, lm: TransformerLM, cache: KVCache, position: Tensor) -> None:
        """`position` [1] int64: the step of the input that comes next, prepended steps not counted."""
        config, device, dtype = lm.config, lm.device, lm.head.weight.dtype
        num_rows, length = cache.keys.shape[1], cache.max_length
        assert cache.fused is not None
        self._lm, self._cache, self._position = lm, cache, position
        self._num_prepended = 0 if cache.fused.prefix is None else cache.fused.prefix.shape[1]
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
        self._logits = torch.empty(num_rows, config.num_codebooks, config.codebook_size, device=device)
        self._is_rotary = config.positions == "rope"
        self._frequencies = (
            rotary_frequencies(config.head_dim, device)
            if self._is_rotary
            else sinusoid_frequencies(config.dim, device)
        )
        self._num_hidden = (
            None
            if cache.fused.prefix_mask is None
            else torch.empty(num_rows, device=device, dtype=torch.int64)
        )
        mask = cache.fused.memory_mask
        self._memory_seen = None if mask is None else torch.empty_like(mask)
        self.take_conditions()

    def take_conditions(self) -> None:
        """Follow the cache's conditions, which have changed in place."""
        fused = self._cache.fused
        assert fused is not None
        if self._num_hidden is not None:
            assert fused.prefix_mask is not None
            torch.sum(~fused.prefix_mask, 1, out=self._num_hidden)
        if self._memory_seen is not None:
            assert fused.memory_mask is not None
            # As `attend_memory` does: what is masked altogether is seen, and is nothing.
            mask = fused.memory_mask
            self._memory_seen.copy_(mask | ~mask.any(1, keepdim=True))

    def __call__(self, draft: Draft) -> None:
        """Sample the step at `position` and count it up, without reading anything back from the device."""
        from .triton_ends import can_draw, draw, embed
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
        linear(self._x, lm.head.weight, self._logits.flatten(1), norm=_norm(lm.norm))
        if can_draw(draft.sampling, lm.config.codebook_size):
            draw(self._logits, draft.noise, draft.to_sample, draft.tokens, position, draft.sampling)
        else:
            draft.take(self._logits, position)
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
            _gain(attention.q_norm),
            _gain(attention.k_norm),
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


def _gain(module: nn.Module) -> Tensor | None:
    return module.weight if isinstance(module, RMSNorm) else None


def _norm(module: nn.Module) -> Norm:
    from .triton_linear import Norm

    if isinstance(module, nn.LayerNorm):
        return Norm("layernorm", module.weight, module.bias, module.eps)
    assert isinstance(module, RMSNorm)
    assert module.eps is not None
    return Norm("rmsnorm", module.weight, None, module.eps)
