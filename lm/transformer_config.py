"""The shape of a Transformer language model: a modern default, and every option that MusicGen needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from ..core.conditions import Conditions
from ..core.errors import UserError
from .language_model import LMConfig
from .patterns import Pattern, PatternName, make_pattern


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(LMConfig):
    """Everything that decides the shape of a model and the meaning of its tokens."""

    kind: ClassVar[str] = "transformer"

    pattern: PatternName = "delay"
    """In which order the model meets the tokens of a frame."""
    delays: tuple[int, ...] | None = None
    """[K] steps by which the pattern `delay` shifts each codebook; None: 0, 1, …, K - 1."""
    dim: int = 256
    """D, the width of the residual stream."""
    num_layers: int = 6
    num_heads: int = 4
    """Query heads; must divide `dim` into heads of even width."""
    num_kv_heads: int | None = None
    """Key and value heads, shared by groups of query heads (arXiv:2305.13245); None: as many as those."""
    feed_forward_dim: int | None = None
    """Hidden width of the feed-forward layers; None: 8/3 D for `swiglu`, 4 D for `gelu`, which have the same
    number of parameters."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """RMSNorm (arXiv:1910.07467), or LayerNorm (arXiv:1607.06450) with biases."""
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """Of the feed-forward layers: gated (arXiv:2002.05202), or plain (arXiv:1606.08415)."""
    positions: Literal["rope", "sinusoidal"] = "rope"
    """Rotary (arXiv:2104.09864), or sines and cosines added to the input."""
    qk_norm: bool = True
    """RMSNorm of queries and keys, head by head (after arXiv:2010.04245)."""
    dropout: float = 0.0
    """On the input and the residual branches, while training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % (2 * self.num_heads):
            raise UserError(
                f"dim {self.dim} must be a multiple of 2 * num_heads = {2 * self.num_heads}"
                " (heads need an even width)"
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.delays is not None and len(self.delays) != self.num_codebooks:
            raise UserError(
                f"delays {list(self.delays)} must be {self.num_codebooks} numbers, one a codebook"
            )
        try:
            self.make_pattern()
        except ValueError as error:
            raise UserError(f"pattern and delays of the model: {error}") from error

    @classmethod
    def for_codec(cls, codec: Mapping[str, Any], conditions: Conditions | None = None, **shape: Any) -> Self:
        """A model for the tokens of `codec` (the content of `codec.json`); `shape` are the other settings."""
        return cls(
            num_codebooks=codec["num_codebooks"],
            codebook_size=codec["codebook_size"],
            frame_rate=codec["frame_rate"],
            codec=codec,
            conditions=conditions or Conditions(),
            **shape,
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """H_kv."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the feed-forward layers."""
        if self.feed_forward_dim is not None:
            return self.feed_forward_dim
        return 32 * math.ceil(8 * self.dim / 3 / 32) if self.activation == "swiglu" else 4 * self.dim

    @property
    def has_memory(self) -> bool:
        """Whether blocks have cross-attention."""
        return bool(self.conditions.fused_by("cross"))

    def make_pattern(self) -> Pattern:
        """The codebook pattern that the model is for."""
        return make_pattern(self.pattern, self.num_codebooks, self.delays)
