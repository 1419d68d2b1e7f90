"""The two ends of a step as Triton kernels: from tokens to vectors, and from logits to tokens.

Shapes: B clips, R rows (B, or 2 B under guidance), K codebooks, S pattern steps, V codebook size, D model
width.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...sampling import Sampling
from .triton_launch import launch_options

MAX_VOCABULARY = 16384


def embed(
    tokens: Tensor,
    position: Tensor,
    table: Tensor,
    out: Tensor,
    *,
    added: Tensor | None = None,
    frequencies: Tensor | None = None,
    num_prepended: int = 0,
    num_hidden: Tensor | None = None,
) -> None:
    """What the blocks read at a position: sums of embeddings, of conditions, and of its sinusoids.

    Args:
        tokens: [B, K, S] int64; row r is of clip r modulo B.
        position: [1] int64.
        table: [K (V + 1), D], the rows of one codebook after those of another.
        out: [R, D] float32.
        added: [R, D].
        frequencies: [D / 2], of sinusoidal positions; None: there are none.
        num_prepended: steps before position 0.
        num_hidden: [R] int64, those of them that take no place; None: none are.
    """
    num_rows, dim = out.shape
    block = min(256, triton.next_power_of_2(dim))
    _embed[(num_rows, triton.cdiv(dim, block))](
        tokens,
        position,
        table,
        added,
        frequencies,
        num_hidden,
        out,
        tokens.shape[0],
        table.shape[0] // tokens.shape[1],
        tokens.stride(0),
        tokens.stride(1),
        tokens.stride(2),
        num_prepended,
        DIM=dim,
        NUM_CODEBOOKS=tokens.shape[1],
        BLOCK=block,
        num_warps=4,
        **launch_options(out.device),
    )


@triton.jit
def _embed(
    tokens_ptr,
    position_ptr,
    table_ptr,
    added_ptr,
    frequency_ptr,
    num_hidden_ptr,
    out_ptr,
    num_clips,
    rows_of_codebook,
    clip_stride,
    codebook_stride,
    step_stride,
    num_prepended,
    DIM: tl.constexpr,
    NUM_CODEBOOKS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_d = d < DIM
    position = tl.load(position_ptr).to(tl.int32)
    token_ptr = tokens_ptr + (row % num_clips) * clip_stride + position * step_stride
    x = tl.zeros([BLOCK], tl.float32)
    for codebook in range(NUM_CODEBOOKS):
        token = tl.load(token_ptr + codebook * codebook_stride).to(tl.int32)
        place = (codebook * rows_of_codebook + token) * DIM
        x += tl.load(table_ptr + place + d, mask=is_d, other=0.0).to(tl.float32)
    if added_ptr is not None:
        x += tl.load(added_ptr + row * DIM + d, mask=is_d, other=0.0).to(tl.float32)
    if frequency_ptr is not None:
        counted = position + num_prepended
        if num_hidden_ptr is not None:
            counted -= tl.load(num_hidden_ptr + row).to(tl.int32)
        half: tl.constexpr = DIM // 2
        angle = counted * tl.load(frequency_ptr + d % half, mask=is_d, other=0.0)
        x += tl.where(d < half, tl.cos(angle), tl.sin(angle))
    tl.store(out_ptr + row * DIM + d, x, mask=is_d)


def can_draw(sampling: Sampling, vocabulary: int) -> bool:
    """Whether `draw` can: nucleus sampling needs a sorted distribution."""
    return (sampling.top_p is None or sampling.top_p == 1) and vocabulary <= MAX_VOCABULARY


def draw(
    logits: Tensor,
    noise: Tensor,
    to_sample: Tensor,
    tokens: Tensor,
    position: Tensor,
    sampling: Sampling,
) -> None:
    """Sample the tokens after a position and write them, as `sample_tokens` does it.

    Args:
        logits: [R, K, V] float32.
        noise: [B, K, S] float32.
        to_sample: [B, K, S] bool.
        tokens: [B, K, S + 1] int64; written at `position` + 1 where they are to be sampled.
        position: [1] int64.
        sampling: as far as `can_draw` goes.
    """
    num_clips, num_codebooks, _ = noise.shape
    vocabulary = logits.shape[2]
    top_k = sampling.top_k or vocabulary
    is_greedy = sampling.temperature == 0 or top_k == 1
    _draw[(num_clips, num_codebooks)](
        logits,
        noise,
        to_sample,
        tokens,
        position,
        num_clips,
        *noise.stride(),
        *to_sample.stride(),
        *tokens.stride(),
        float(sampling.cfg_scale),
        1.0 if is_greedy else float(sampling.temperature),
        top_k,
        NUM_CODEBOOKS=num_codebooks,
        VOCABULARY=vocabulary,
        BLOCK=triton.next_power_of_2(vocabulary),
        IS_GUIDED=sampling.is_guided,
        IS_GREEDY=is_greedy,
        HAS_TOP_K=top_k < vocabulary,
        num_warps=4,
        **launch_options(logits.device),
    )


@triton.jit(do_not_specialize=["top_k"])
def _draw(
    logits_ptr,
    noise_ptr,
    to_sample_ptr,
    tokens_ptr,
    position_ptr,
    num_clips,
    noise_clip_stride,
    noise_codebook_stride,
    noise_step_stride,
    to_sample_clip_stride,
    to_sample_codebook_stride,
    to_sample_step_stride,
    tokens_clip_stride,
    tokens_codebook_stride,
    tokens_step_stride,
    scale,
    temperature,
    top_k,
    NUM_CODEBOOKS: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_GUIDED: tl.constexpr,
    IS_GREEDY: tl.constexpr,
    HAS_TOP_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    clip = tl.program_id(0)
    codebook = tl.program_id(1)
    step = tl.load(position_ptr).to(tl.int32)
    v = tl.arange(0, BLOCK)
    is_token = v < VOCABULARY
    places = (clip * NUM_CODEBOOKS + codebook) * VOCABULARY + v
    x = tl.load(logits_ptr + places, mask=is_token, other=-float("inf"))
    if IS_GUIDED:
        places += num_clips * NUM_CODEBOOKS * VOCABULARY
        unconditional = tl.load(logits_ptr + places, mask=is_token, other=0.0)
        x = unconditional + scale * (x - unconditional)
        x = tl.where(is_token, x, -float("inf"))
    is_broken = tl.sum((x != x).to(tl.int32), 0) > 0
    if IS_GREEDY:
        token = tl.argmax(x, 0)
    else:
        x = x / temperature
        kept = is_token
        if HAS_TOP_K:
            # Of numbers as their bits, turned so that integers are in the same order, the k-th largest is
            # found bit by bit.
            bits = x.to(tl.int32, bitcast=True)
            order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
            least = tl.where(tl.sum((order >= 0).to(tl.int32), 0) >= top_k, 0, -2147483648)
            for bit in tl.static_range(31):
                higher = least + (1 << (30 - bit))
                least = tl.where(tl.sum((order >= higher).to(tl.int32), 0) >= top_k, higher, least)
            least = least ^ ((least >> 31) & 0x7FFFFFFF)
            kept = kept & (x >= least.to(tl.float32, bitcast=True))
        weight = tl.where(kept, tl.exp(x - tl.max(x, 0)), 0.0)
        cumulative = tl.cumsum(weight, 0)
        # The parts of a sum may be rounded otherwise than the whole, so what is drawn must have a weight.
        can_be = weight > 0
        total = tl.max(tl.where(can_be, cumulative, 0.0), 0)
        noise = tl.load(
            noise_ptr + clip * noise_clip_stride + codebook * noise_codebook_stride + step * noise_step_stride
        )
        token = tl.min(tl.where(can_be & (cumulative >= noise * total), v, VOCABULARY), 0)
    token = tl.where(is_broken, VOCABULARY, token)
    is_sampled = tl.load(
        to_sample_ptr
        + clip * to_sample_clip_stride
        + codebook * to_sample_codebook_stride
        + step * to_sample_step_stride
    )
    tl.store(
        tokens_ptr
        + clip * tokens_clip_stride
        + codebook * tokens_codebook_stride
        + (step + 1) * tokens_step_stride,
        token.to(tl.int64),
        mask=is_sampled != 0,
    )
