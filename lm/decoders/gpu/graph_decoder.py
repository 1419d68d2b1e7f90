"""Generation on a GPU: a whole step, sampling included, is one CUDA graph that is replayed.

Everything that a step reads or writes lies in buffers that never move: tokens, noise, keys and values, and
the step's own number, which the graph counts up itself. Attention looks at the filled part of the cache in
buckets: a graph is captured for each bucket, and the next one is taken when it is full. For few rows the step
is made of kernels of our own (`fused_step.py`), which need no buckets.

Without CUDA the same step runs uncaptured, which is how its tests compare it with the plain decoder.

Shapes: B clips, R rows (B, or 2 B under guidance), K codebooks, S pattern steps, V codebook size, D model
width, P prepended steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ....core.attention import Visible
from ....core.conditioner import Fused
from ....core.conditions import GivenConditions
from ....core.rotary import rotary_tables
from ...sampling import Sampling
from ...transformer import KVCache, Surroundings, TransformerLM, sinusoids
from ..decoder import Decoder, Draft, Prepared
from .fused_step import FusedStep
from .resident_step import ResidentStep, TwoResidentSteps
from .triton_step import TritonStep

BUCKET = 256
"""Steps by which the part of the cache that attention looks at grows."""


class StepCache(KVCache):
    """A cache that can also be written at a position which only the device knows."""

    position: Tensor | None = None  # [1] int64: where a single step goes; None: after `length`
    bucket = 0
    """Steps that a single step looks at."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.extend`; a single step returns the whole bucket."""
        if self.position is None:
            return super().extend(layer, keys, values)
        self.keys[layer].index_copy_(2, self.position, keys)
        self.values[layer].index_copy_(2, self.position, values)
        return self.keys[layer, :, :, : self.bucket], self.values[layer, :, :, : self.bucket]


class BucketVisible(Visible):
    """The keys of a bucket up to a position on the device."""

    def __init__(self, seen: Tensor) -> None:
        """`seen`: [B or 1, L] bool."""
        super().__init__(num_queries=1, num_past=seen.shape[1] - 1, keys=seen)
        self._dense = seen[:, None, None]


class GraphTransformer(Prepared):
    """A Transformer on a GPU; captured steps are kept for the next clips of the same shape."""

    def __init__(self, lm: TransformerLM, *, use_kernels: bool | None = None) -> None:
        """`use_kernels`: whether steps are kernels of our own (`fused_step.py`) where these can do it, and
        not PyTorch's operations; None: on CUDA."""
        self.lm = lm
        self.use_kernels = lm.device.type == "cuda" if use_kernels is None else use_kernels
        self._idle: dict[tuple[int, int], list[GraphDecoder]] = {}

    def decoder(self, conditions: GivenConditions, num_rows: int, max_steps: int) -> Decoder:
        """A decoder for `num_rows` rows under `conditions`, for at most `max_steps` steps of input."""
        idle = self._idle.setdefault((num_rows, max_steps), [])
        fused_step = fused_step_for(self.lm, num_rows) if self.use_kernels else None
        decoder = idle.pop() if idle else GraphDecoder(self.lm, num_rows, max_steps, fused_step, idle.append)
        decoder.start(conditions)
        return decoder


def fused_step_for(lm: TransformerLM, num_rows: int) -> type[FusedStep] | None:
    """The fastest kernels of our own that can do a step of a model for this many rows."""
    kinds: tuple[type[FusedStep], ...] = (ResidentStep, TwoResidentSteps, TritonStep)
    return next((kind for kind in kinds if kind.can_run(lm, num_rows)), None)


class GraphDecoder(Decoder):
    """Buffers for one batch of clips, and the graphs that work on them."""

    def __init__(
        self,
        lm: TransformerLM,
        num_rows: int,
        max_steps: int,
        fused_step: type[FusedStep] | None,
        give_back: Callable[[GraphDecoder], None],
    ) -> None:
        self._lm = lm
        self._num_rows = num_rows
        self._max_steps = max_steps
        self._kind_of_step = fused_step
        self._give_back = give_back
        self._cache: StepCache | None = None
        self._fused_step: FusedStep | None = None
        self._draft: Draft | None = None
        self._graphs: dict[tuple[int, Sampling], torch.cuda.CUDAGraph] = {}
        self.num_replays = 0
        """Steps that were replayed and not launched one kernel after another."""

    def start(self, conditions: GivenConditions) -> None:
        """Take new conditions; buffers and graphs stay as far as their shapes do."""
        lm = self._lm
        fused = lm.conditioner(conditions, self._num_rows)
        length = self._max_steps + (0 if fused.prefix is None else fused.prefix.shape[1])
        length = -(-length // BUCKET) * BUCKET
        memories = lm.memory_keys_values(fused.memory)
        old = self._cache
        self.num_seen = 0
        if old is not None and old.max_length == length and _copied_into(old, fused, memories):
            old.length = 0
            if self._fused_step is not None:
                self._fused_step.take_conditions()
            return
        cache = StepCache(lm.config, self._num_rows, length, lm.device, lm.head.weight.dtype)
        cache.keys.zero_()  # steps not yet seen are masked, and must not be NaN
        cache.values.zero_()
        cache.fused, cache.memories = fused, memories
        self._cache = cache
        self._position = torch.zeros(1, dtype=torch.int64, device=lm.device)
        self._fused_step = (
            None if self._kind_of_step is None else self._kind_of_step(lm, cache, self._position)
        )
        if self._fused_step is not None:
            self._fused_step.take_conditions()
        self._graphs.clear()

    def feed(self, tokens: Tensor) -> Tensor:
        """[R, K, S] to [R, K, V]; for any number of steps."""
        assert self._cache is not None
        return self._lm.next_logits(tokens, self._cache)

    def run(self, draft: Draft, start: int, stop: int) -> None:
        """Sample the pattern's steps `start` to `stop` - 1; the first is fed with all that is known."""
        assert self._cache is not None
        if start == self.num_seen == 0 or start > self.num_seen:
            super().run(draft, start, start + 1)
            start += 1
        if start >= stop:
            return
        mine = self._copied(draft)
        num_prepended = self._cache.length - self.num_seen
        self._position.fill_(start)
        for step in range(start, stop):
            # The kernels find out by themselves how much of the cache is filled.
            filled = num_prepended + step + 1 if self._fused_step is None else self._cache.max_length
            bucket = -(-filled // BUCKET) * BUCKET
            self._step(mine, bucket, num_prepended)
        self._cache.length += stop - start
        self.num_seen = stop
        draft.tokens.copy_(mine.tokens)

    def close(self) -> None:
        """Hand the buffers on to the next clips."""
        self._give_back(self)

    def _copied(self, draft: Draft) -> Draft:
        """The draft in buffers of our own, which graphs know."""
        mine = self._draft
        if mine is None or mine.tokens.shape != draft.tokens.shape:
            self._graphs.clear()
            self._draft = Draft(
                draft.tokens.clone(), draft.to_sample.clone(), draft.noise.clone(), draft.sampling
            )
            return self._draft
        for old, new in (
            (mine.tokens, draft.tokens),
            (mine.to_sample, draft.to_sample),
            (mine.noise, draft.noise),
        ):
            old.copy_(new)
        mine.sampling = draft.sampling
        return mine

    def _step(self, draft: Draft, bucket: int, num_prepended: int) -> None:
        """One step at the position on the device, which then is one further."""
        if not draft.tokens.is_cuda:
            self._launch(draft, bucket, num_prepended)
            return
        key = bucket, draft.sampling
        if key not in self._graphs:
            self._graphs[key] = self._capture(draft, bucket, num_prepended)
        self._graphs[key].replay()
        self.num_replays += 1

    def _capture(self, draft: Draft, bucket: int, num_prepended: int) -> torch.cuda.CUDAGraph:
        # A trial run outside the graph, which libraries use to set themselves up; what it writes is undone
        # by the replay, which writes the same, but for the position.
        position = self._position.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._launch(draft, bucket, num_prepended)
            self._position.copy_(position)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # A training's other threads may ask the device something meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._launch(draft, bucket, num_prepended)
        return graph

    def _launch(self, draft: Draft, bucket: int, num_prepended: int) -> None:
        """Sample the step at `position` and count it up, without reading anything back from the device."""
        if self._fused_step is not None:
            self._fused_step(draft)
            return
        lm, cache, position = self._lm, self._cache, self._position
        assert cache is not None
        assert cache.fused is not None
        fused = cache.fused
        tokens = draft.tokens.index_select(2, position)
        x = lm.embed_tokens(torch.cat([tokens, tokens]) if draft.sampling.is_guided else tokens)
        if fused.added is not None:
            x = x + fused.added[:, None]
        place = position + num_prepended
        counted = place[None]  # [1, 1], or [R, 1]: padding of what is prepended takes no place
        if fused.prefix_mask is not None:
            counted = counted - (~fused.prefix_mask).sum(1, keepdim=True)
        rotary = None
        if lm.config.positions == "rope":
            rotary = rotary_tables(counted[:, None], lm.config.head_dim)
        else:
            x = x + sinusoids(counted, lm.config.dim).to(x.dtype)
        seen = torch.arange(bucket, device=place.device)[None] <= place
        if fused.prefix_mask is not None:
            padding = bucket - fused.prefix_mask.shape[1]
            seen = seen & F.pad(fused.prefix_mask, (0, padding), value=True)
        cache.position, cache.bucket = place, bucket
        around = Surroundings(BucketVisible(seen), rotary, fused.memory, fused.memory_mask, cache)
        for block in lm.blocks:
            x = block(x, around)
        cache.position = None
        logits = lm.head(lm.norm(x)[:, -1]).unflatten(-1, (tokens.shape[1], -1))
        draft.take(logits, position)
        position += 1


def _copied_into(cache: StepCache, fused: Fused, memories: list[tuple[Tensor, Tensor]]) -> bool:
    """Copy new conditions into the buffers of a cache; False, and nothing copied, if they do not fit."""
    assert cache.fused is not None
    old = [getattr(cache.fused, field.name) for field in dataclasses.fields(Fused)]
    new = [getattr(fused, field.name) for field in dataclasses.fields(Fused)]
    old += [tensor for pair in cache.memories for tensor in pair]
    new += [tensor for pair in memories for tensor in pair]
    pairs = list(zip(old, new, strict=True))
    if any((a is None) != (b is None) or (a is not None and a.shape != b.shape) for a, b in pairs):
        return False
    for a, b in pairs:
        if a is not None:
            a.copy_(b)
    return True
