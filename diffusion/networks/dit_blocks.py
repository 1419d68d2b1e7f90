"""The blocks of diffusion Transformers: attention in both directions, cross-attention, feed-forward.

Shapes: B batch, S tokens, W model width, H heads, Dh = W/H width of a head, M states of the memory, E their
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ...core.attention import Backend, SeenKeys, attend, attend_memory
from ...core.rms_norm import RMSNorm
from ...core.rotary import rotate


@dataclass(frozen=True)
class BlockShape:
    """What a block is made of."""

    dim: int
    num_heads: int
    hidden_dim: int
    """Hidden width of the feed-forward layer."""
    memory_dim: int | None = None
    """E; None: no cross-attention."""
    num_memory_heads: int = 1
    """Key and value heads of cross-attention, shared by groups of query heads."""
    modulated: bool = True
    """adaLN-zero; else norms have gains and biases of their own."""
    qk_norm: bool = True
    """RMSNorm of queries and keys, head by head (after arXiv:2010.04245)."""
    bias: bool = False
    """Whether the feed-forward layer has biases."""

    @property
    def head_dim(self) -> int:
        """Dh."""
        return self.dim // self.num_heads


@dataclass
class Surroundings:
    """What all blocks are given beside the residual stream."""

    rotary: tuple[Tensor, Tensor]
    """Cosines and sines of the positions' angles, [S, 1, Dh/2], or [B, S, 1, Dh/2] where clips differ."""
    seen: SeenKeys | None = None
    """Which tokens are seen; None: all."""
    global_vector: Tensor | None = None  # [B, W], of time and conditions, for adaLN
    memory: Tensor | None = None  # [B, M, E]
    memory_mask: Tensor | None = None  # [B, M] bool
    backend: Backend = "sdpa"


class Attention(nn.Module):
    """Self-attention in both directions, with rotary positions."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, eps=1e-6) if shape.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(shape.head_dim, eps=1e-6) if shape.qk_norm else nn.Identity()
        self.out = nn.Linear(shape.dim, shape.dim, bias=False)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """[B, S, W] to [B, S, W]."""
        # Three of [B, S, H, Dh]: heads are swapped with steps only as a view, which costs no copy.
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        q, k = rotate(self.q_norm(q), *around.rotary), rotate(self.k_norm(k), *around.rotary)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y: Tensor = self.out(attend(q, k, v, around.seen, around.backend).transpose(1, 2).flatten(2))
        return y


class CrossAttention(nn.Module):
    """Attention to the memory of conditions; its keys and values do not change while a clip is sampled."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        assert shape.memory_dim is not None
        self.head_dim = shape.head_dim
        self.query = nn.Linear(shape.dim, shape.dim, bias=False)
        self.key_value = nn.Linear(shape.memory_dim, 2 * shape.num_memory_heads * shape.head_dim, bias=False)
        self.out = nn.Linear(shape.dim, shape.dim, bias=False)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Of the memory [B, M, E]: two [B, H_kv, M, Dh]."""
        k, v = self.key_value(memory).unflatten(-1, (2, -1, self.head_dim)).unbind(2)
        return k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """[B, S, W] to [B, S, W]; states that are False in `mask` [B, M] are not seen."""
        q = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        y: Tensor = self.out(attend_memory(q, *keys_values, mask).transpose(1, 2).flatten(2))
        return y


# SwiGLU: arXiv:2002.05202, eq. 6.
class FeedForward(nn.Module):
    """Gated feed-forward layer; one product makes the gates and the values."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.up = nn.Linear(shape.dim, 2 * shape.hidden_dim, bias=shape.bias)
        self.down = nn.Linear(shape.hidden_dim, shape.dim, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, W] to [B, S, W]."""
        gate, value = self.up(x).chunk(2, dim=-1)
        y: Tensor = self.down(F.silu(gate) * value)
        return y


class Block(nn.Module):
    """One layer: attention, cross-attention if there is a memory, and feed-forward, each after a norm.

    adaLN-zero (arXiv:2212.09748, sec. 3.2): time and conditions decide shift and scale after the norms, and
    gates on the branches, which are 0 at first. Cross-attention has no gate; its output is 0 at first.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        own = not shape.modulated
        self.modulation = nn.Linear(shape.dim, 6 * shape.dim) if shape.modulated else None
        self.attention_norm = nn.LayerNorm(shape.dim, elementwise_affine=own)
        self.attention = Attention(shape)
        has_memory = shape.memory_dim is not None
        self.cross_norm = nn.LayerNorm(shape.dim) if has_memory else None
        self.cross_attention = CrossAttention(shape) if has_memory else None
        self.feed_forward_norm = nn.LayerNorm(shape.dim, elementwise_affine=own)
        self.feed_forward = FeedForward(shape)

    def begin_as_nothing(self) -> None:
        """Set what decides shifts, scales and gates, and the output of cross-attention, to zero."""
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
        if self.cross_attention is not None:
            nn.init.zeros_(self.cross_attention.out.weight)

    def memory_keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory [B, M, E]: two [B, H_kv, M, Dh]."""
        assert self.cross_attention is not None
        return self.cross_attention.keys_values(memory)

    def forward(
        self, x: Tensor, around: Surroundings, keys_values: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """[B, S, W] to [B, S, W]; `keys_values` are those of this layer, if they are known."""
        if self.modulation is None:
            x = x + self.attention(self.attention_norm(x), around)
            x = self._attend_memory(x, around, keys_values)
            y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
            return y
        assert around.global_vector is not None
        made = self.modulation(F.silu(around.global_vector))[:, None].chunk(6, dim=-1)  # six of [B, 1, W]
        shift, scale, gate, shift_2, scale_2, gate_2 = made
        x = x + gate * self.attention(modulate(self.attention_norm(x), shift, scale), around)
        x = self._attend_memory(x, around, keys_values)
        return x + gate_2 * self.feed_forward(  # type: ignore[no-any-return]
            modulate(self.feed_forward_norm(x), shift_2, scale_2)
        )

    def _attend_memory(
        self, x: Tensor, around: Surroundings, keys_values: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        if self.cross_attention is None:
            return x
        assert self.cross_norm is not None
        if keys_values is None:
            assert around.memory is not None
            keys_values = self.memory_keys_values(around.memory)
        y: Tensor = x + self.cross_attention(self.cross_norm(x), keys_values, around.memory_mask)
        return y


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x · (1 + scale) + shift: [B, S, W], by two of [B, 1, W]."""
    return x * (1 + scale) + shift


def block_flops(shape: BlockShape, num_tokens: int, num_memory: int) -> float:
    """Forward and backward operations of one block over one clip, as `Network.clip_flops` counts."""
    dim = shape.dim
    weights = 4 * dim * dim + 3 * dim * shape.hidden_dim
    total = 6.0 * num_tokens * weights + 12.0 * dim * num_tokens**2
    if shape.modulated:
        total += 6.0 * 6 * dim * dim
    if shape.memory_dim is not None:
        kv_dim = 2 * shape.num_memory_heads * shape.head_dim
        total += 6.0 * (num_tokens * 2 * dim * dim + num_memory * shape.memory_dim * kv_dim)
        total += 12.0 * dim * num_tokens * num_memory
    return total


def blocks_in(modules: nn.ModuleList) -> list[Block]:
    """The blocks that a list holds, by their type."""
    return [block for block in modules if isinstance(block, Block)]
