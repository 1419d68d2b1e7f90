"""One query of each row over the keys before it, in one Triton kernel that also writes the step's own.

Normalised queries and keys, rotary positions and the cache are part of it. The keys are attended to in parts
by as many programs (flash-decoding); what joins the parts is the product that follows (`triton_linear.py`).
How many keys there are is read on the device, so one captured graph serves a cache however full it is.

Shapes: R rows, H query heads, H_kv key heads, Dh width of a head, L keys, P parts of the keys.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .triton_launch import launch_options

BLOCK_KEYS = 128
"""Keys that a program of `attend` looks at at once; each has its own running maximum and sum."""


@dataclass(frozen=True)
class NewKeys:
    """Where the keys and values of the step go, and what is done to its queries and keys before."""

    position: Tensor  # [1] int64
    num_prepended: int
    """Steps in the cache before position 0."""
    q_gain: Tensor | None = None  # [Dh], of RMSNorm; None: no norm
    k_gain: Tensor | None = None  # [Dh]
    eps: float = 0.0
    frequencies: Tensor | None = None  # [Dh / 2], of rotary positions; None: not rotated
    num_hidden: Tensor | None = None  # [R] int64, prepended steps that take no place; None: none are


def attend(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    logs: Tensor,
    *,
    new: NewKeys | None = None,
    seen: Tensor | None = None,
) -> None:
    """Attention of one query a row, over the keys up to its own, or over all keys of a memory.

    Args:
        x: with `new`, queries, keys and values [R, (H + 2 H_kv) Dh], else queries [R, H Dh].
        keys, values: [R, H_kv, L, Dh], of the same strides, the last of them 1.
        out: [P, R, H, Dh] float32, attention over each of P parts of the keys.
        logs: [P, R, H] float32, the binary logarithm of each part's sum of exponentials.
        new: keys and values of `x` are written to `keys` and `values` at this position.
        seen: [R, l] bool, l ≤ L: which of the first l keys are seen; None: all are.
    """
    num_parts, num_rows, num_heads, head_dim = out.shape
    num_kv_heads = keys.shape[1]
    assert keys.stride() == values.stride()
    assert keys.stride(3) == 1
    is_self = new is not None
    new = new or NewKeys(position=x, num_prepended=0)
    _attend[(num_rows * num_heads, num_parts)](
        x,
        new.q_gain,
        new.k_gain,
        new.frequencies,
        keys,
        values,
        seen,
        out,
        logs,
        new.position if is_self else None,
        new.num_hidden,
        new.num_prepended if is_self else keys.shape[2],
        0 if seen is None else seen.shape[1],
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        num_rows,
        head_dim**-0.5,
        new.eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_L=BLOCK_KEYS,
        num_warps=4,
        **launch_options(out.device),
    )


@triton.jit
def _attend(
    x_ptr,
    q_gain_ptr,
    k_gain_ptr,
    frequency_ptr,
    keys_ptr,
    values_ptr,
    seen_ptr,
    out_ptr,
    logs_ptr,
    position_ptr,
    num_hidden_ptr,
    length,
    num_seen,
    row_stride,
    head_stride,
    key_stride,
    num_rows,
    scale,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0) // NUM_HEADS
    head = tl.program_id(0) % NUM_HEADS
    part = tl.program_id(1)
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    d = tl.arange(0, BLOCK_D)
    is_d = d < HEAD_DIM
    is_self: tl.constexpr = position_ptr is not None
    num_heads_of_x: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS if is_self else NUM_HEADS
    x_ptr += row * num_heads_of_x * HEAD_DIM
    place = 0
    if is_self:
        length += tl.load(position_ptr).to(tl.int32)
        place = length
        if num_hidden_ptr is not None:
            place -= tl.load(num_hidden_ptr + row).to(tl.int32)
    keys_ptr += row * row_stride + kv_head * head_stride
    values_ptr += row * row_stride + kv_head * head_stride
    num_parts = tl.num_programs(1)
    share = tl.cdiv(tl.cdiv(length, num_parts), BLOCK_L) * BLOCK_L
    first = part * share
    last = tl.minimum(first + share, length)
    # The position and the keys before it are of earlier steps, whose kernels have all ended: what counts
    # steps up is PyTorch's, which overlaps with nothing. So they may come early too.
    l = first + tl.arange(0, BLOCK_L)  # noqa: E741
    places = l[:, None] * key_stride + d[None, :]
    mask = (l < last)[:, None] & is_d[None, :]
    k = tl.load(keys_ptr + places, mask=mask, other=0.0)
    v = tl.load(values_ptr + places, mask=mask, other=0.0)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    q = _turned(x_ptr + head * HEAD_DIM, q_gain_ptr, frequency_ptr, place, eps, d, is_d, HEAD_DIM)
    q *= scale * 1.4426950408889634  # so that exponentials are powers of two
    if is_self:
        # The step's own key is not read back: another program writes it.
        k_ptr = x_ptr + (NUM_HEADS + kv_head) * HEAD_DIM
        k_new = _turned(k_ptr, k_gain_ptr, frequency_ptr, place, eps, d, is_d, HEAD_DIM)
        k_new = k_new.to(keys_ptr.dtype.element_ty)
        v_new = tl.load(k_ptr + NUM_KV_HEADS * HEAD_DIM + d, mask=is_d, other=0.0)
    # Finite, as the difference of two infinities is no number.
    most = tl.full([BLOCK_L], -1e30, tl.float32)
    total = tl.zeros([BLOCK_L], tl.float32)
    y = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    for start in range(first, last, BLOCK_L):
        l = start + tl.arange(0, BLOCK_L)  # noqa: E741
        is_key = l < last
        if seen_ptr is not None:
            known = tl.load(seen_ptr + row * num_seen + l, mask=l < num_seen, other=1)
            is_key = is_key & (known != 0)
        score = tl.where(is_key, tl.sum(k.to(tl.float32) * q[None, :], 1), -1e30)
        higher = tl.maximum(most, score)
        scaled = tl.exp2(most - higher)
        weight = tl.where(is_key, tl.exp2(score - higher), 0.0)
        total = total * scaled + weight
        y = y * scaled[:, None] + v.to(tl.float32) * weight[:, None]
        most = higher
        l += BLOCK_L  # noqa: E741
        places = l[:, None] * key_stride + d[None, :]
        mask = (l < last)[:, None] & is_d[None, :]
        k = tl.load(keys_ptr + places, mask=mask, other=0.0)
        v = tl.load(values_ptr + places, mask=mask, other=0.0)

    highest = tl.max(most, 0)
    if is_self:
        score_new = tl.where(part == 0, tl.sum(q * k_new.to(tl.float32), 0), -1e30)
        highest = tl.maximum(highest, score_new)
    scaled = tl.exp2(most - highest)
    sum_of_all = tl.sum(total * scaled, 0)
    y_of_all = tl.sum(y * scaled[:, None], 0)
    if is_self:
        weight_new = tl.where(part == 0, tl.exp2(score_new - highest), 0.0)
        sum_of_all += weight_new
        y_of_all += weight_new * v_new.to(tl.float32)
        is_writer = (part == 0) & (head % (NUM_HEADS // NUM_KV_HEADS) == 0)
        tl.store(keys_ptr + length * key_stride + d, k_new, mask=is_d & is_writer)
        tl.store(
            values_ptr + length * key_stride + d,
            v_new.to(values_ptr.dtype.element_ty),
            mask=is_d & is_writer,
        )
    place_of_part = (part * num_rows + row) * NUM_HEADS + head
    is_empty = sum_of_all == 0.0
    y_of_all = y_of_all / tl.where(is_empty, 1.0, sum_of_all)
    tl.store(out_ptr + place_of_part * HEAD_DIM + d, y_of_all, mask=is_d)
    log = highest + tl.log2(tl.where(is_empty, 1.0, sum_of_all))
    tl.store(logs_ptr + place_of_part, tl.where(is_empty, -float("inf"), log))


@triton.jit
def _turned(x_ptr, gain_ptr, frequency_ptr, place, eps, d, is_d, HEAD_DIM: tl.constexpr):
    """A query or key, normalised if there is a gain, rotated to its place if there are frequencies."""
    x = tl.load(x_ptr + d, mask=is_d, other=0.0).to(tl.float32)
    scale = 1.0
    if gain_ptr is not None:
        scale = tl.rsqrt(tl.sum(x * x, 0) / HEAD_DIM + eps)
        x = x * scale * tl.load(gain_ptr + d, mask=is_d, other=0.0).to(tl.float32)
    if frequency_ptr is not None:
        half: tl.constexpr = HEAD_DIM // 2
        angle = place * tl.load(frequency_ptr + d % half, mask=is_d, other=0.0)
        other = tl.where(d < half, d + half, d - half)
        pair = tl.load(x_ptr + other, mask=is_d, other=0.0).to(tl.float32)
        if gain_ptr is not None:
            pair = pair * scale * tl.load(gain_ptr + other, mask=is_d, other=0.0).to(tl.float32)
        x = x * tl.cos(angle) + tl.where(d < half, -pair, pair) * tl.sin(angle)
    return x
