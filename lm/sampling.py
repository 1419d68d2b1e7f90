"""Drawing tokens from a model's predictions.

Every token has noise of its own, a function of (seed, number of the clip, codebook, frame), so a clip does
not depend on the clips that it is generated with.

Shapes: B batch, K codebooks, T frames, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Sample among this many likeliest tokens."""
    top_p: float | None = None
    """Sample among the likeliest tokens that together have this probability."""
    cfg_scale: float = 1.0
    """Classifier-free guidance; 1 is none, and costs half."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature:g} must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k {self.top_k} must be at least 1, or None for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p:g} must be above 0 and at most 1, or None for no limit")

    @property
    def is_guided(self) -> bool:
        """Whether the model is asked twice, with conditions and without."""
        return self.cfg_scale != 1.0

    def __call__(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Logits [B, ..., V], or [2 B, ..., V] if guided, and noise [B, ...] to tokens [B, ...] int64."""
        if self.is_guided:
            logits = guide(logits, self.cfg_scale)
        return sample_tokens(logits, self.temperature, self.top_k, self.top_p, noise)


# Classifier-free guidance: arXiv:2207.12598, eq. 6, where its w is our scale - 1.
def guide(logits: Tensor, scale: float) -> Tensor:
    """Logits [2 B, ...], conditional rows before unconditional ones, to [B, ...]."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def sample_tokens(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, noise: Tensor
) -> Tensor:
    """Draw one token for each distribution: logits [..., V] and noise [...] in (0, 1] to tokens [...] int64.

    The token is where the cumulative probability reaches the noise (inversion), with tokens in the order of
    the codebook: their order by probability would change with the last bit of a logit. `top_p` is nucleus
    sampling (arXiv:1904.09751, sec. 3.1) of what `top_k` has left. Tokens tied with the last one kept are
    kept too. From NaN comes V, which is no token.
    """
    if temperature == 0 or top_k == 1:
        return torch.where(logits.isnan().any(-1), logits.shape[-1], logits.argmax(-1))
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        descending = probabilities.sort(-1, descending=True).values
        kept = descending.cumsum(-1) - descending < top_p  # always the first, as 0 < top_p
        smallest = descending.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < smallest, 0)
    cumulative = probabilities.cumsum(-1)
    # Scaled by the sum as rounded, and never 0: a token of probability 0 cannot be reached.
    return torch.searchsorted(cumulative, noise[..., None] * cumulative[..., -1:]).squeeze(-1)


def clip_noise(seed: int, clip: int, num_codebooks: int, num_frames: int) -> Tensor:
    """Uniform noise in (0, 1] for the tokens of clip number `clip`: [K, T] float32.

    Frame t's is the same whatever T is.
    """
    drawn = np.random.default_rng((seed, clip)).random((num_frames, num_codebooks), np.float32)
    return 1 - torch.from_numpy(drawn).T
