"""Generation on a CPU: all of a step between its tokens and its logits is one call of a compiled kernel.

Shapes: R rows, K codebooks, S steps, V codebook size, D model width, H heads, P prepended steps, M states of
the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.conditioner import Fused
from ...core.conditions import GivenConditions
from ...core.rms_norm import RMSNorm
from ...core.rotary import rotary_tables
from ..transformer import Block, KVCache, TransformerLM, sinusoids
from .decoder import Decoder, Prepared, Weights
from .transformer_kernel import Attend, KVBuffers, Linear, Norm, Operation, Step, pack_matrix


class PackedBlock:
    """The matrices of one layer in the format in which they are read."""

    def __init__(self, block: Block, weights: Weights) -> None:
        attention, cross, feed_forward = block.attention, block.cross_attention, block.feed_forward
        self.attention_norm = _norm(block.attention_norm)
        self.qkv = pack_matrix(attention.qkv.weight, weights)
        self.q_norm, self.k_norm = (
            norm.weight.detach() if isinstance(norm, RMSNorm) else None
            for norm in (attention.q_norm, attention.k_norm)
        )
        self.out = pack_matrix(attention.out.weight, weights)
        self.cross_norm = _norm(block.cross_norm) if block.cross_norm is not None else None
        self.query = pack_matrix(cross.query.weight, weights) if cross is not None else None
        self.cross_out = pack_matrix(cross.out.weight, weights) if cross is not None else None
        self.feed_forward_norm = _norm(block.feed_forward_norm)
        self.up = pack_matrix(feed_forward.up.weight, weights, feed_forward.is_gated)
        self.down = pack_matrix(feed_forward.down.weight, weights)


class PackedTransformer(Prepared):
    """A Transformer whose matrices stand as the kernel reads them."""

    def __init__(self, lm: TransformerLM, weights: Weights) -> None:
        self.lm = lm
        self.weights = weights
        self.blocks = [PackedBlock(block, weights) for block in lm.blocks if isinstance(block, Block)]
        self.norm = _norm(lm.norm)
        self.head = pack_matrix(lm.head.weight, weights)

    def decoder(self, conditions: GivenConditions, num_rows: int, max_steps: int) -> Decoder:
        """A decoder for `num_rows` rows under `conditions`, for at most `max_steps` steps of input."""
        return KernelDecoder(self, conditions, num_rows, max_steps)


class KernelDecoder(Decoder):
    """The first steps by the model's own modules in float32, all others one at a time by the kernel.

    Keys and values are kept in float32 for float32 weights, else in int8; each row's without the prepended
    steps that are masked for it.
    """

    def __init__(
        self, prepared: PackedTransformer, conditions: GivenConditions, num_rows: int, max_steps: int
    ) -> None:
        self._lm = lm = prepared.lm
        self._num_rows = num_rows
        config = lm.config
        self._fused = lm.conditioner(conditions, num_rows)
        num_prepended = 0 if self._fused.prefix is None else self._fused.prefix.shape[1]
        capacity = num_prepended + max_steps
        self._lengths = torch.zeros(num_rows, dtype=torch.int64)
        # bf16 ones of two rows would be a third of the bf16 weights at the end of 30 s.
        cached: Weights = "fp32" if prepared.weights == "fp32" else "int8"
        self._caches = [
            KVBuffers(num_rows, config.kv_heads, capacity, config.head_dim, cached, self._lengths)
            for _ in lm.blocks
        ]
        self._x = torch.empty(num_rows, config.dim)
        self._logits = torch.empty(num_rows, config.num_codebooks * config.codebook_size)
        self._step = Step(self._operations(prepared, capacity), num_rows)

    def feed(self, tokens: Tensor) -> Tensor:
        """[R, K, S] to [R, K, V], which the next call overwrites."""
        if self.num_seen == 0 and (tokens.shape[2] > 1 or self._fused.prefix is not None):
            return self._first(tokens)
        for step in range(tokens.shape[2]):
            x = self._lm.embed_tokens(tokens[:, :, step : step + 1])[:, 0]
            if self._fused.added is not None:
                x = x + self._fused.added
            if self._lm.config.positions == "sinusoidal":
                x = x + sinusoids(self._lengths, self._lm.config.dim)
            self._x.copy_(x)
            self._step.run()
            self._lengths += 1
        return self._logits.view(self._num_rows, tokens.shape[1], -1)

    def _first(self, tokens: Tensor) -> Tensor:
        """All that is known, at once: there a matrix product pays, and a kernel for few rows does not."""
        lm, fused = self._lm, self._fused
        num_prepended = 0 if fused.prefix is None else fused.prefix.shape[1]
        cache = KVCache(lm.config, self._num_rows, num_prepended + tokens.shape[2])
        cache.fused = fused
        logits = lm.next_logits(tokens, cache)
        seen = torch.ones(self._num_rows, cache.length, dtype=torch.bool)
        if fused.prefix_mask is not None:
            seen[:, :num_prepended] = fused.prefix_mask
        self._lengths.copy_(seen.sum(1))
        for layer, buffers in enumerate(self._caches):
            _fill(buffers, cache.keys[layer], cache.values[layer], seen)
        return logits

    def _operations(self, prepared: PackedTransformer, capacity: int) -> list[Operation]:
        """The step, from `_x` to `_logits`."""
        config, num_rows = self._lm.config, self._num_rows
        x = self._x
        attended, queries = torch.empty(num_rows, config.dim), torch.empty(num_rows, config.dim)
        qkv = torch.empty(num_rows, sum(self._lm.blocks[0].attention.widths))  # type: ignore[union-attr,arg-type]
        hidden = torch.empty(num_rows, config.hidden_dim)
        rotary = None
        if config.positions == "rope":
            cosines, sines = rotary_tables(torch.arange(capacity), config.head_dim)
            rotary = cosines.contiguous(), sines.contiguous()
        memories = self._memories(prepared.weights)
        operations: list[Operation] = []
        for layer, block in enumerate(prepared.blocks):
            operations += [
                Linear(x, qkv, block.qkv, norm=block.attention_norm),
                Attend(
                    qkv,
                    attended,
                    self._caches[layer],
                    config.num_heads,
                    append=True,
                    q_norm=block.q_norm,
                    k_norm=block.k_norm,
                    rotary=rotary,
                ),
                Linear(attended, x, block.out, residual=x),
            ]
            if block.query is not None and block.cross_out is not None:
                operations += [
                    Linear(x, queries, block.query, norm=block.cross_norm),
                    Attend(queries, attended, memories[layer], config.num_heads),
                    Linear(attended, x, block.cross_out, residual=x),
                ]
            operations += [
                Linear(x, hidden, block.up, norm=block.feed_forward_norm, activation=config.activation),
                Linear(hidden, x, block.down, residual=x),
            ]
        return [*operations, Linear(x, self._logits, prepared.head, norm=prepared.norm)]

    def _memories(self, weights: Weights) -> list[KVBuffers]:
        """Keys and values of the memory, one pair a layer; each row's without what is masked for it."""
        fused: Fused = self._fused
        if fused.memory is None:
            return []
        num_states = fused.memory.shape[1]
        seen = torch.ones(self._num_rows, num_states, dtype=torch.bool)
        if fused.memory_mask is not None:
            seen = fused.memory_mask
        config, lengths = self._lm.config, seen.sum(1)
        memories = []
        for keys, values in self._lm.memory_keys_values(fused.memory):
            shape = self._num_rows, config.kv_heads, num_states, config.head_dim
            memories.append(KVBuffers(*shape, weights, lengths))
            _fill(memories[-1], keys, values, seen)
        return memories


def _fill(buffers: KVBuffers, keys: Tensor, values: Tensor, seen: Tensor) -> None:
    """Write those of keys and values [R, H_kv, S, Dh] that are `seen` [R, S], without gaps."""
    if not bool(seen.all()):
        # What is seen moves to the front, in order; what lies behind a row's length is never read.
        order = (~seen).to(torch.int8).argsort(dim=1, stable=True)[:, None, :, None].expand_as(keys)
        keys, values = keys.gather(2, order), values.gather(2, order)
    buffers.fill(keys, values)


def _norm(module: nn.Module) -> Norm:
    if isinstance(module, nn.LayerNorm):
        bias = None if module.bias is None else module.bias.detach()
        return Norm("layernorm", module.weight.detach(), bias, module.eps)
    assert isinstance(module, RMSNorm)
    assert module.weight is not None
    assert module.eps is not None
    return Norm("rmsnorm", module.weight.detach(), None, module.eps)
