"""A step of a Transformer in bfloat16 for few rows as one kernel (`resident_step.cu`).

It needs Hopper's engine for copies to shared memory (and later GPUs'). For up to two rows and short memories,
cross-attention is folded: its keys go into the query's weights and its values into the output's, so that a
layer has one product less to wait for. That holds 2 H · 32 D numbers a row and layer.

Shapes: as in `fused_step.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import sys
from itertools import zip_longest

import torch
from torch import Tensor, nn

from ....core.conditioner import Fused
from ....core.rms_norm import RMSNorm
from ...transformer import Block, KVCache, TransformerLM
from ...transformer_config import TransformerConfig
from ..decoder import Draft
from .fused_step import FusedStep, gain_of
from .nvrtc import Kernel, missing_library

NUM_WARPS = 8
NUM_THREADS = 32 * (NUM_WARPS + 4)
"""One more warp fetches weights; registers are given to four together."""
MAX_STATES = 32
"""Of a memory that is folded."""
MAX_PARTS = 8
MIN_STAGES, MAX_STAGES = 4, 32
"""Of the ring in which weights wait; four are taken at once."""
NUM_FIELDS = 35
"""64-bit numbers of the kernel's `Step` before its layers."""
NUM_LAYER_FIELDS = 20


class ResidentStep(FusedStep):
    """Launches the kernel."""

    @classmethod
    def can_run(cls, lm: TransformerLM, num_rows: int) -> bool:
        """See `FusedStep`."""
        return (
            super().can_run(lm, num_rows)
            and lm.head.weight.dtype == torch.bfloat16
            and _fits(lm.config)
            and num_stages(lm.config, num_rows, lm.device) >= MIN_STAGES
            and runs_resident(lm.device)
        )

    def __init__(
        self, lm: TransformerLM, cache: KVCache, position: Tensor, logits: Tensor | None = None
    ) -> None:
        """`logits` [R, K, V]: where they go; None: to a buffer of its own."""
        super().__init__(lm, cache, position)
        if logits is not None:
            self.logits = logits
        config, device, fused = lm.config, lm.device, cache.fused
        assert fused is not None
        num_rows = cache.keys.shape[1]
        num_pairs = -(-num_rows // 2)
        self._num_blocks = num_blocks(config, device)
        num_parts = max(1, min(MAX_PARTS, self._num_blocks // (num_rows * config.num_heads)))
        memory = cache.memories[0][0] if cache.memories else None
        self._folded: list[tuple[Tensor, Tensor]] = []
        if memory is not None and memory.shape[2] <= MAX_STATES and can_fold(config, num_rows):
            scores = config.num_heads * MAX_STATES
            self._folded = [
                (
                    torch.zeros(num_rows, scores, config.dim, device=device, dtype=torch.bfloat16),
                    torch.zeros(num_rows, config.dim, scores, device=device, dtype=torch.bfloat16),
                )
                for _ in range(config.num_layers)
            ]

        def words(*shape: int) -> Tensor:
            """Zeros are of no step."""
            return torch.zeros(shape, device=device, dtype=torch.int64)

        of_heads = num_rows, config.num_heads, config.head_dim // 2 + 1
        blocks = [block for block in lm.blocks if isinstance(block, Block)]
        self._shifts = [
            [
                _shifts(block.attention_norm, block.attention.qkv.weight),
                self._query_shifts(block, folded),
                _shifts(block.feed_forward_norm, block.feed_forward.up.weight),
            ]
            for block, folded in zip_longest(blocks, self._folded)
        ]
        self.position_of_logits = torch.zeros_like(position)
        self._buffers: list[Tensor | None] = [
            torch.ones(1, device=device, dtype=torch.int32),  # launches
            position,
            self.position_of_logits,
            lm.token_embedding.weight,
            fused.added,
            self._frequencies,
            self._num_hidden,
            fused.prefix_mask,
            self._memory_seen,
            words(num_pairs, config.dim),  # x
            words(num_pairs, config.dim),  # after attention
            words(num_pairs, config.dim),  # after cross-attention
            words(num_pairs, config.dim + 2 * config.kv_heads * config.head_dim),
            words(num_parts, *of_heads),
            words(num_pairs, config.dim),  # queries to the memory
            words(*of_heads),
            words(num_pairs, config.hidden_dim),
            words(num_rows, config.num_heads * MAX_STATES),  # scores
            _gain(lm.norm),
            lm.head.weight,
            _shifts(lm.norm, lm.head.weight),
            self.logits,
        ]
        self._numbers = [
            self._num_prepended,
            0 if fused.prefix_mask is None else fused.prefix_mask.shape[1],
            0 if memory is None else memory.shape[2],
            cache.keys.stride(1),
            cache.keys.stride(2),
            *((0, 0, 0) if memory is None else memory.stride()[:3]),
        ]
        shape = {
            "ROWS": num_rows,
            "LAYERS": config.num_layers,
            "DIM": config.dim,
            "HEADS": config.num_heads,
            "KV_HEADS": config.kv_heads,
            "HEAD_DIM": config.head_dim,
            "HIDDEN": config.hidden_dim,
            "CODEBOOKS": config.num_codebooks,
            "LOGITS": config.num_codebooks * config.codebook_size,
            "PARTS": num_parts,
            "BLOCKS": self._num_blocks,
            "IS_LAYERNORM": int(config.norm == "layernorm"),
            "HAS_GAIN": int(config.qk_norm),
            "HAS_MEMORY": int(memory is not None),
            "IS_FOLDED": int(bool(self._folded)),
            "IS_ROTARY": int(self._is_rotary),
            "GATED": int(config.activation == "swiglu"),
            "SCALE": f"{_scale(config):.9e}f",
            "NUM_WARPS": NUM_WARPS,
            "NUM_STAGES": num_stages(config, num_rows, device),
            "NUM_SHARED_BYTES": max_shared_bytes(device),
        }
        self._kernel = kernel(tuple(shape.items()), device)
        self._num_shared_bytes = max_shared_bytes(device)
        self._tokens: Tensor | None = None

    def take_conditions(self) -> None:
        """See `FusedStep`."""
        super().take_conditions()
        config = self._lm.config
        groups = config.num_heads // config.kv_heads
        for number, (folded, memory) in enumerate(zip(self._folded, self._cache.memories, strict=False)):
            block = self._lm.blocks[number]
            assert isinstance(block, Block)
            assert block.cross_attention is not None
            # [R, H, M, Dh]
            keys, values = (t.repeat_interleave(groups, 1).float() for t in memory)
            num_states = keys.shape[2]
            query = block.cross_attention.query.weight.float().view(config.num_heads, -1, config.dim)
            out = block.cross_attention.out.weight.float().view(config.dim, config.num_heads, -1)
            into_scores = folded[0].view(len(keys), config.num_heads, MAX_STATES, config.dim)
            into_scores[:, :, :num_states] = torch.einsum("rhmd,hdi->rhmi", keys, query) * _scale(config)
            from_scores = folded[1].view(len(keys), config.dim, config.num_heads, MAX_STATES)
            from_scores[..., :num_states] = torch.einsum("ohd,rhmd->rohm", out, values)
            shifts, found = self._shifts[number][1], self._query_shifts(block, folded)
            if shifts is not None and found is not None:
                shifts.copy_(found)

    def __call__(self, draft: Draft) -> None:
        """See `FusedStep`."""
        self.launch(draft.tokens)
        self._sample(draft, self.position_of_logits)

    def launch(self, tokens: Tensor) -> None:
        """The logits after the tokens [B, K, S] at `position`, which is counted up."""
        if self._tokens is not tokens:
            self._tokens = tokens
            fields = [_address(buffer) for buffer in self._buffers]
            fields += [_address(tokens), tokens.shape[0], *tokens.stride(), *self._numbers]
            assert len(fields) == NUM_FIELDS
            for layer in range(self._lm.config.num_layers):
                fields += map(_address, self._layer(layer))
            self._given = torch.tensor(fields, device=self.logits.device)
        self._kernel.launch(self._num_blocks, NUM_THREADS, self._num_shared_bytes, self._given)

    def _query_shifts(self, block: Block, folded: tuple[Tensor, Tensor] | None) -> Tensor | None:
        cross = block.cross_attention
        if cross is None:
            return None
        return _shifts(block.cross_norm, cross.query.weight if folded is None else folded[0].flatten(0, 1))

    def _layer(self, number: int) -> list[Tensor | None]:
        """The kernel's `Layer`."""
        block, cache = self._lm.blocks[number], self._cache
        assert isinstance(block, Block)
        attention, cross, feed_forward = block.attention, block.cross_attention, block.feed_forward
        found: list[Tensor | None] = [
            _gain(block.attention_norm),
            attention.qkv.weight,
            gain_of(attention.q_norm),
            gain_of(attention.k_norm),
            cache.keys[number],
            cache.values[number],
            attention.out.weight,
        ]
        if cross is None:
            found += [None] * 5
        else:
            assert block.cross_norm is not None
            norm = _gain(block.cross_norm)
            found += [norm, cross.query.weight, *cache.memories[number], cross.out.weight]
        found += [_gain(block.feed_forward_norm), feed_forward.up.weight, feed_forward.down.weight]
        found += self._folded[number] if self._folded else [None, None]
        return found + self._shifts[number]


class TwoResidentSteps(FusedStep):
    """Two launches for more rows than one takes, of half of them each.

    Both read all weights. Twice 8 rows of MusicGen small take 1.3 to 2.1 ms on an H200 (`bench_steps.py`),
    where PyTorch's step takes 2.1 for one or two.
    """

    @classmethod
    def can_run(cls, lm: TransformerLM, num_rows: int) -> bool:
        """See `FusedStep`."""
        return ResidentStep.can_run(lm, -(-num_rows // 2))

    def __init__(self, lm: TransformerLM, cache: KVCache, position: Tensor) -> None:
        super().__init__(lm, cache, position)
        num_rows = cache.keys.shape[1]
        half = -(-num_rows // 2)
        # Under guidance these are the clips and the clips without conditions: neither half has a clip twice.
        self._rows = slice(0, half), slice(half, num_rows)
        positions = position, torch.zeros_like(position)
        self._steps = [
            ResidentStep(lm, _rows_of(cache, rows), own, self.logits[rows])
            for rows, own in zip(self._rows, positions, strict=True)
        ]
        self._second_position = positions[1]
        self._tokens: Tensor | None = None
        self._tokens_of_steps: list[Tensor] = []

    def take_conditions(self) -> None:
        """See `FusedStep`."""
        for step in self._steps:
            step.take_conditions()

    def __call__(self, draft: Draft) -> None:
        """See `FusedStep`."""
        if self._tokens is not draft.tokens:
            self._tokens = draft.tokens
            num_clips = draft.tokens.shape[0]
            self._tokens_of_steps = [
                draft.tokens[rows.start % num_clips :][: rows.stop - rows.start] for rows in self._rows
            ]
        self._second_position.copy_(self._position)
        for step, tokens in zip(self._steps, self._tokens_of_steps, strict=True):
            step.launch(tokens)
        self._sample(draft, self._steps[0].position_of_logits)


def _rows_of(cache: KVCache, rows: slice) -> KVCache:
    """Some rows of a cache and of its conditions, in the same memory."""
    part = copy.copy(cache)
    part.keys, part.values = cache.keys[:, rows], cache.values[:, rows]
    part.memories = [(keys[rows], values[rows]) for keys, values in cache.memories]
    assert cache.fused is not None
    given = {field.name: getattr(cache.fused, field.name) for field in dataclasses.fields(cache.fused)}
    part.fused = Fused(**{name: None if one is None else one[rows] for name, one in given.items()})
    return part


def can_fold(config: TransformerConfig, num_rows: int) -> bool:
    """Whether a short memory is folded: with more rows, their matrices would be too much to read."""
    return num_rows <= 2 and config.num_heads % NUM_WARPS == 0


def _fits(config: TransformerConfig) -> bool:
    """Whether the kernel is made for a shape."""
    lanes = config.head_dim // 8  # that share a key
    return (
        config.dim % 32 == 0
        and config.hidden_dim % 32 == 0
        and config.head_dim % 8 == 0
        and 0 < lanes <= 32
        and lanes & (lanes - 1) == 0
    )


def num_stages(config: TransformerConfig, num_rows: int, device: torch.device) -> int:
    """Of the ring, for which there is what the rest of the kernel's `Shared` leaves of a block's memory."""
    outputs = [
        config.dim + 2 * config.kv_heads * config.head_dim,
        config.num_codebooks * config.codebook_size,
        config.hidden_dim * (2 if config.activation == "swiglu" else 1),
    ]
    inputs = [config.dim, config.hidden_dim]
    if can_fold(config, num_rows):
        inputs.append(config.num_heads * MAX_STATES)
        outputs += [num_rows * inputs[-1], num_rows * config.dim]
    fields = NUM_FIELDS + NUM_LAYER_FIELDS * config.num_layers
    parts_and_moments = NUM_WARPS * (config.head_dim + 2 + 16)
    sums = (max(-(-n // num_blocks(config, device)) for n in outputs) + 9) * num_rows * (NUM_WARPS + 4)
    turns = num_rows * config.head_dim
    rest = 8 * fields + 4 * (parts_and_moments + turns + sums) + 2 * num_rows * (max(inputs) + 32) + 256
    chunks = min(32, max(inputs) // 32)
    stage = 8 * 64 * (chunks + 1) + 16
    return max(0, min(MAX_STAGES, (max_shared_bytes(device) - rest) // stage))


def num_blocks(config: TransformerConfig, device: torch.device) -> int:
    """As many as run at the same time, as far as each has a share of the residual stream.

    So whoever has received all of it knows that all blocks have begun.
    """
    share = -(-config.dim // num_multiprocessors(device))
    return -(-config.dim // share)


def num_multiprocessors(device: torch.device) -> int:
    """Each runs one block."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def max_shared_bytes(device: torch.device) -> int:
    """What a block can have."""
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


@functools.cache
def runs_resident(device: torch.device) -> bool:
    """Whether the kernel can be compiled and a small trial of it is right; a line says why not where the GPU
    itself could run it."""
    if (
        device.type != "cuda"
        or torch.version.cuda is None
        or torch.cuda.get_device_capability(device) < (9, 0)
    ):
        return False
    reason = missing_library() or trial(device)
    if reason is not None:
        print(
            f"generation: the kernel for bfloat16 cannot be used on {device} ({reason}); using others",
            file=sys.stderr,
        )
    return reason is None


def trial(device: torch.device) -> str | None:
    """What is wrong with the kernel on `device`, seen in three steps of a tiny model; None: nothing."""
    config = TransformerConfig(
        num_codebooks=2, codebook_size=32, frame_rate=50.0, dim=64, num_layers=2, num_heads=2
    )
    drawing = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with drawing, torch.inference_mode():
        torch.manual_seed(0)
        lm = TransformerLM(config).to(device, torch.bfloat16).eval()
        tokens = torch.randint(0, config.codebook_size, (2, 2, 4), device=device)
        cache = KVCache(config, 2, 4, device, torch.bfloat16)
        cache.fused = lm.conditioner({}, 2)
        try:
            step = ResidentStep(lm, cache, torch.zeros(1, dtype=torch.int64, device=device))
            for _ in range(3):
                step.launch(tokens)
        except RuntimeError as error:
            return str(error).strip().splitlines()[0]
        expected = lm.float().logits(tokens[:, :, :3])[:, :, -1]
    is_right = bool((step.logits - expected).norm() < 0.05 * expected.norm())  # not among NaN
    return None if is_right else "its results are wrong"


@functools.cache
def kernel(shape: tuple[tuple[str, object], ...], device: torch.device) -> Kernel:
    """The kernel for a shape, once."""
    return Kernel("resident_step", dict(shape), device)


def _scale(config: TransformerConfig) -> float:
    """Of queries: exponentials are powers of two."""
    return math.log2(math.e) / math.sqrt(config.head_dim)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _gain(module: nn.Module) -> Tensor:
    assert isinstance(module, nn.LayerNorm | RMSNorm)
    assert module.weight is not None
    return module.weight


def _shifts(norm: nn.Module | None, weight: Tensor) -> Tensor | None:
    """The kernel's `Shifts` of a product with `weight` [N, D] after a norm: [N, 2], if it has a mean."""
    if not isinstance(norm, nn.LayerNorm):
        return None
    return weight.float() @ torch.stack([norm.weight, norm.bias], 1).float()
