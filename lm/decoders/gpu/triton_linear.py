"""Products of few rows with a matrix, and all that stands before and after them, as one Triton kernel.

With few rows a step reads every weight once and computes next to nothing with it, so its time is that of the
bytes and of starting kernels. Therefore a kernel does all that lies between two places where every output
needs every input: norm, product, activation and residual. Statistics of rows are computed again by each
program. Sums are in float32, without TF32, whatever the number format of the weights.

Shapes: R rows, N outputs, I inputs, H heads, Dh width of a head, P parts of the keys (`triton_attention.py`).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .triton_launch import launch_options

NormKind = Literal["none", "layernorm", "rmsnorm"]
Epilogue = Literal["none", "gelu", "swiglu", "add"]

ROWS = 4
"""Rows that share a program: more would not leave enough registers. Further ones find the weights in L2."""


@dataclass(frozen=True)
class Norm:
    """What is done to the input of a product."""

    kind: NormKind = "none"
    gain: Tensor | None = None  # [I]
    bias: Tensor | None = None  # [I]
    eps: float = 0.0


@dataclass(frozen=True)
class Tiling:
    """How a product is cut into programs."""

    num_outputs: int
    """Of a program, a power of two."""
    num_warps: int


def tiling(num_outputs: int, weight: Tensor, *, has_norm: bool, has_gate: bool) -> Tiling:
    """What was fastest of some for two rows of MusicGen small in bfloat16 on an H200.

    With a norm, statistics within one warp need no barrier; without, more warps have more bytes under way. A
    warp's weights have to fit its registers.
    """
    width = triton.next_power_of_2(weight.shape[1])
    limit = triton.next_power_of_2(num_outputs)
    num_bytes = weight.element_size() * width * (2 if has_gate else 1)  # of an output
    if has_norm:
        return Tiling(max(1, min(4, limit)), max(1, min(8, num_bytes // 2048)))
    return Tiling(max(1, min(8, limit, 8192 // width)), 8 if width <= 2048 else 4)


def linear(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    norm: Norm | None = None,
    epilogue: Epilogue = "none",
    weights_of_parts: Tensor | None = None,
    tiles: Tiling | None = None,
) -> None:
    """`out` [R, N] = epilogue(norm(x) weight^T), or `out` plus that for the epilogue `add`.

    Args:
        x: [R, I], or the parts [P, R, H, Dh] that `attend` has written.
        weight: [N, I]; [2 N, I] for `swiglu`, the gate before the value.
        out: [R, N].
        norm: of each row, before the product.
        epilogue: `gelu`, `swiglu` (arXiv:2002.05202, eq. 6), `add` or nothing.
        weights_of_parts: with parts, the logarithms [P, R, H] that `attend` has written.
        tiles: by default `tiling` of the shape.
    """
    norm = norm or Norm()
    num_rows, num_outputs = out.shape
    num_inputs = weight.shape[1]
    tiles = tiles or tiling(num_outputs, weight, has_norm=norm.kind != "none", has_gate=epilogue == "swiglu")
    rows = min(ROWS, max(2, triton.next_power_of_2(num_rows)))
    grid = triton.cdiv(num_outputs, tiles.num_outputs), triton.cdiv(num_rows, rows)
    _linear[grid](
        x,
        weights_of_parts,
        norm.gain,
        norm.bias,
        weight,
        out,
        num_rows,
        num_outputs,
        norm.eps,
        NUM_INPUTS=num_inputs,
        NORM=norm.kind,
        EPILOGUE=epilogue,
        NUM_PARTS=1 if weights_of_parts is None else x.shape[0],
        HEAD_DIM=1 if weights_of_parts is None else x.shape[3],
        ROWS=rows,
        BLOCK_N=tiles.num_outputs,
        BLOCK_I=triton.next_power_of_2(num_inputs),
        num_warps=tiles.num_warps,
        **launch_options(out.device),
    )


@triton.jit
def _linear(
    x_ptr,
    logs_ptr,
    gain_ptr,
    bias_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    eps,
    NUM_INPUTS: tl.constexpr,
    NORM: tl.constexpr,
    EPILOGUE: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_I: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    i = tl.arange(0, BLOCK_I)
    is_input = i < NUM_INPUTS
    mask = (n < num_outputs)[:, None] & is_input[None, :]
    places = n[:, None] * NUM_INPUTS + i[None, :]
    # No kernel writes weights, so they may come while the kernel before is still at work.
    weight = tl.load(weight_ptr + places, mask=mask, other=0.0, eviction_policy="evict_first")
    if EPILOGUE == "swiglu":
        value_ptr = weight_ptr + num_outputs * NUM_INPUTS
        value = tl.load(value_ptr + places, mask=mask, other=0.0, eviction_policy="evict_first")
    if NORM != "none":
        gain = tl.load(gain_ptr + i, mask=is_input, other=0.0)
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + i, mask=is_input, other=0.0)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    for nth in tl.static_range(ROWS // 2):
        # Rows go in pairs, because each sum over a program's threads is waited for: pairs halve the waiting.
        row = tl.program_id(1) * ROWS + 2 * nth
        a = _input(x_ptr, logs_ptr, row, num_rows, i, NUM_INPUTS, NUM_PARTS, HEAD_DIM)
        b = _input(x_ptr, logs_ptr, row + 1, num_rows, i, NUM_INPUTS, NUM_PARTS, HEAD_DIM)
        rows = row + tl.arange(0, 2)
        out = out_ptr + rows[None, :] * num_outputs + n[:, None]
        is_output = (n < num_outputs)[:, None] & (rows < num_rows)[None, :]
        if EPILOGUE == "add":
            residual = tl.load(out, mask=is_output, other=0.0)
        if NORM == "layernorm":
            # Both moments in one sum. It loses digits where a row's mean is far above its deviation.
            moments = tl.sum(tl.join(tl.join(a, b), tl.join(a * a, b * b)), 0) / NUM_INPUTS
            mean, square = tl.split(moments)
            mean_a, mean_b = tl.split(mean)
            scale_a, scale_b = tl.split(tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + eps))
            a = (a - mean_a) * scale_a * gain.to(tl.float32)
            b = (b - mean_b) * scale_b * gain.to(tl.float32)
            if bias_ptr is not None:
                a += bias.to(tl.float32)
                b += bias.to(tl.float32)
        if NORM == "rmsnorm":
            square = tl.sum(tl.join(a * a, b * b), 0) / NUM_INPUTS
            scale_a, scale_b = tl.split(tl.rsqrt(square + eps))
            a = a * scale_a * gain.to(tl.float32)
            b = b * scale_b * gain.to(tl.float32)
        w = weight.to(tl.float32)
        y = tl.sum(tl.join(w * a[None, :], w * b[None, :]), 1)  # [N, 2]
        if EPILOGUE == "gelu":
            y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
        if EPILOGUE == "swiglu":
            w = value.to(tl.float32)
            y = y * tl.sigmoid(y) * tl.sum(tl.join(w * a[None, :], w * b[None, :]), 1)
        if EPILOGUE == "add":
            y += residual.to(tl.float32)
        tl.store(out, y.to(out_ptr.dtype.element_ty), mask=is_output)


@triton.jit
def _input(
    x_ptr,
    logs_ptr,
    row,
    num_rows,
    i,
    NUM_INPUTS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """A row [I] in float32, zeros where there is none."""
    mask = (i < NUM_INPUTS) & (row < num_rows)
    if NUM_PARTS == 1:
        x = tl.load(x_ptr + row * NUM_INPUTS + i, mask=mask, other=0.0).to(tl.float32)
    else:
        x = _joined(x_ptr, logs_ptr, row, num_rows, i, mask, NUM_INPUTS, NUM_PARTS, HEAD_DIM)
    return x


@triton.jit
def _joined(
    parts_ptr,
    logs_ptr,
    row,
    num_rows,
    i,
    mask,
    NUM_INPUTS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Attention over all keys of that over parts of them: a row [I]."""
    num_heads: tl.constexpr = NUM_INPUTS // HEAD_DIM
    heads = row * num_heads + i // HEAD_DIM
    most = tl.load(logs_ptr + heads, mask=mask, other=0.0)
    for part in tl.static_range(1, NUM_PARTS):
        log = tl.load(logs_ptr + part * num_rows * num_heads + heads, mask=mask, other=0.0)
        most = tl.maximum(most, log)
    total = tl.zeros_like(most)
    x = tl.zeros_like(most)
    for part in tl.static_range(NUM_PARTS):
        log = tl.load(logs_ptr + part * num_rows * num_heads + heads, mask=mask, other=0.0)
        share = tl.exp2(log - most)
        total += share
        x += share * tl.load(parts_ptr + (part * num_rows + row) * NUM_INPUTS + i, mask=mask, other=0.0)
    return x / total
