"""Attention of queries over keys, and the libraries that can compute it.

`sdpa` is PyTorch's own and always there; `xformers` runs on CUDA; `flex` is PyTorch's compiled attention.
All give the result of `sdpa`: which one is used is no property of a model, and is not saved with it.

Shapes: B batch, H query heads, H_kv key heads (H is a multiple of it), S queries, L keys, Dh width of a head.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Backend = Literal["sdpa", "xformers", "flex"]


@dataclass
class Visible:
    """Which keys a query sees, the same in all layers; each backend's form of it is made once.

    Query s stands at position `num_past + s` and sees the keys up to there, of its own clip.
    """

    num_queries: int
    num_past: int = 0
    """Keys before the first query, in a cache."""
    keys: Tensor | None = None  # [B, L] bool, False for keys that nobody sees; None: all are seen
    clips: Tensor | None = None  # [B, S] int64, the clip that each step belongs to; None: one clip a row
    _dense: Tensor | None = field(default=None, repr=False)
    _block: Any = field(default=None, repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether it is the causal mask of whole sequences, or hides nothing at all."""
        whole = self.keys is None and self.clips is None
        return whole and (self.num_past == 0 or self.num_queries == 1)

    def dense(self, device: torch.device) -> Tensor:
        """True where query s sees key l: [B or 1, 1, S, L]."""
        if self._dense is None:
            num_keys = self.num_past + self.num_queries
            shape = self.num_queries, num_keys
            seen = torch.ones(shape, dtype=torch.bool, device=device).tril(self.num_past)[None]
            if self.clips is not None:
                seen = seen & (self.clips[:, :, None] == self.clips[:, None, :])
            if self.keys is not None:
                # A query always sees itself: a row that sees nothing has no softmax.
                itself = torch.eye(self.num_queries, num_keys, dtype=torch.bool, device=device)
                itself = itself.roll(self.num_past, 1) if self.num_past else itself
                seen = (seen & self.keys[:, None, :]) | itself
            self._dense = seen[:, None]
        return self._dense

    def block(self, device: torch.device) -> Any:
        """The same as flex attention's `BlockMask`."""
        if self._block is None:
            from torch.nn.attention.flex_attention import create_block_mask

            num_past, clips, keys = self.num_past, self.clips, self.keys

            def seen(b: Tensor, h: Tensor, s: Tensor, l: Tensor) -> Tensor:  # noqa: E741
                is_seen = s + num_past >= l
                if clips is not None:
                    is_seen = is_seen & (clips[b, s] == clips[b, l])
                if keys is not None:
                    is_seen = (is_seen & keys[b, l]) | (s + num_past == l)
                return is_seen

            given = clips if clips is not None else keys
            batch = None if given is None else given.shape[0]
            self._block = create_block_mask(
                seen, batch, None, self.num_queries, num_past + self.num_queries, device=str(device)
            )
        return self._block


@dataclass
class SeenKeys:
    """Keys that every query of a clip sees: self-attention in both directions over clips with padding."""

    keys: Tensor  # [B, L] bool, True for at least one key of each clip
    is_plain: ClassVar[bool] = False
    _block: Any = field(default=None, repr=False)

    def dense(self, device: torch.device) -> Tensor:
        """True for keys that are seen: [B, 1, 1, L]."""
        return self.keys[:, None, None].to(device)

    def block(self, device: torch.device) -> Any:
        """The same as flex attention's `BlockMask`."""
        if self._block is None:
            from torch.nn.attention.flex_attention import create_block_mask

            batch_size, num_keys = self.keys.shape
            keys = self.keys.to(device)

            def seen(b: Tensor, h: Tensor, s: Tensor, l: Tensor) -> Tensor:  # noqa: E741
                return keys[b, l]

            self._block = create_block_mask(seen, batch_size, None, num_keys, num_keys, device=str(device))
        return self._block


def attend(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible | SeenKeys | None, backend: Backend = "sdpa"
) -> Tensor:
    """Queries [B, H, S, Dh] over keys and values [B, H_kv, L, Dh] to [B, H, S, Dh].

    `visible` None lets every query see every key.
    """
    if backend == "xformers":
        return _attend_xformers(q, k, v, visible)
    if backend == "flex":
        block = None if visible is None else visible.block(q.device)
        y: Tensor = _compiled_flex()(q, k, v, block_mask=block, enable_gqa=q.shape[1] != k.shape[1])
        return y
    grouped = q.shape[1] != k.shape[1]
    if visible is None or visible.is_plain:
        causal = isinstance(visible, Visible) and visible.num_queries > 1
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    mask = visible.dense(q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def attend_memory(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Queries [B, H, S, Dh] over a memory's keys and values [B, H_kv, M, Dh], of which `mask` [B, M] is seen.

    A clip whose memory is masked altogether gets the mean of its values, which are zeros there: nothing.
    """
    grouped = q.shape[1] != k.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    seen = mask | ~mask.any(1, keepdim=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None], enable_gqa=grouped)


def usable_backend(wanted: Backend, device: torch.device, head_dim: int) -> Backend:
    """`wanted` where a small trial of it runs on `device`, or else `sdpa`, after one line that says why."""
    why = _probe(wanted, device.type, head_dim)
    if why is None:
        return wanted
    print(f"attention: '{wanted}' cannot be used on {device.type} ({why}); using 'sdpa'", file=sys.stderr)
    return "sdpa"


@functools.cache
def _probe(backend: Backend, device_type: str, head_dim: int) -> str | None:
    """Why a backend cannot be trained with, or None where it gives the right results for a small input."""
    if backend == "sdpa":
        return None
    dtype = torch.bfloat16 if device_type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 1, 2, 16, head_dim, generator=generator).to(device_type, dtype)
    visible = Visible(16)

    def output_and_gradients(backend: Backend) -> Tensor:
        leaf = inputs.clone().requires_grad_()
        with torch.enable_grad():
            y = attend(leaf[0], leaf[1], leaf[2], visible, backend)
            (gradients,) = torch.autograd.grad(y.square().sum(), leaf)
        return torch.cat([y.detach()[None], gradients])

    try:
        found, expected = output_and_gradients(backend), output_and_gradients("sdpa")
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[0].strip().rstrip(":") if lines else type(error).__name__
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-4
    if not torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
        return "it does not give the result of 'sdpa'"
    return None


def _attend_xformers(q: Tensor, k: Tensor, v: Tensor, visible: Visible | SeenKeys | None) -> Tensor:
    from xformers import ops  # type: ignore[import-untyped,unused-ignore]
    from xformers.ops import LowerTriangularMask  # type: ignore[import-untyped,unused-ignore]

    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    bias: Any = None
    if isinstance(visible, Visible) and visible.is_plain:
        bias = LowerTriangularMask() if visible.num_queries > 1 else None
    elif visible is not None:
        # xFormers adds a bias; its rows must begin at multiples of 8 elements.
        seen = visible.dense(q.device)
        padded = -seen.shape[-1] % 8
        bias = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, -torch.inf)
        bias = F.pad(bias, (0, padded))[..., : seen.shape[-1]].expand(q.shape[0], q.shape[1], q.shape[2], -1)
    y = ops.memory_efficient_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_bias=bias)
    return y.transpose(1, 2)  # type: ignore[no-any-return]


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
