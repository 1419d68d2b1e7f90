"""A step of a Transformer for few rows without PyTorch's own kernels, of which it needs 25 a layer.

There are two ways: some large Triton kernels a layer (`triton_step.py`), and for bfloat16 one kernel for the
whole step (`resident_step.py`). Both read the model's own parameters. The residual stream is float32, what
products hand to one another otherwise has the number format of the weights.

Shapes: B clips, R rows (B, or 2 B under guidance), K codebooks, V codebook size, D model width, H heads, Dh
width of a head, M states of the memory.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ....core.rms_norm import RMSNorm
from ....core.rotary import rotary_frequencies
from ...transformer import (
    Attention,
    Block,
    CrossAttention,
    FeedForward,
    KVCache,
    TransformerLM,
    sinusoid_frequencies,
)
from ..decoder import Draft

MAX_ROWS = 8
"""With 16, PyTorch's products are faster on an H200."""
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


class FusedStep(ABC):
    """Launches the kernels of a step, for a cache whose buffers stay where they are."""

    @classmethod
    def can_run(cls, lm: TransformerLM, num_rows: int) -> bool:
        """Whether the kernels are made for a model's shape, its device, and this many rows."""
        dtype = lm.head.weight.dtype
        # Their weights are all that is read of them, so they must be what they seem (and not LoRA's, say).
        is_plain = all(type(module) in PLAIN for module in (lm.norm, lm.head, *lm.blocks.modules()))
        has_one_dtype = all(parameter.dtype == dtype for parameter in lm.parameters())
        return (
            is_plain and has_one_dtype and dtype in (torch.float32, torch.bfloat16) and num_rows <= MAX_ROWS
        )

    def __init__(self, lm: TransformerLM, cache: KVCache, position: Tensor) -> None:
        """`position` [1] int64: the step of the input that comes next, prepended steps not counted."""
        config, device = lm.config, lm.device
        num_rows = cache.keys.shape[1]
        assert cache.fused is not None
        self._lm, self._cache, self._position = lm, cache, position
        self._num_prepended = 0 if cache.fused.prefix is None else cache.fused.prefix.shape[1]
        self.logits = torch.empty(num_rows, config.num_codebooks, config.codebook_size, device=device)
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

    def take_conditions(self) -> None:
        """Follow the cache's conditions, which have changed in place, or are there for the first time."""
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

    @abstractmethod
    def __call__(self, draft: Draft) -> None:
        """Sample the step at `position` and count it up, without reading anything back from the device."""

    def _sample(self, draft: Draft, position: Tensor) -> None:
        """The tokens after `position` from `logits`."""
        if runs_triton(self.logits.device):
            from .triton_ends import can_draw, draw

            if can_draw(draft.sampling, self.logits.shape[2]):
                draw(self.logits, draft.noise, draft.to_sample, draft.tokens, position, draft.sampling)
                return
        draft.take(self.logits, position)


def gain_of(module: nn.Module) -> Tensor | None:
    """Of the norm of queries or keys; None where there is none."""
    return module.weight if isinstance(module, RMSNorm) else None
