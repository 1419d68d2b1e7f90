"""How much arithmetic training asks for: for the MFU in the log (`core/mfu.py`).

Shapes: K codebooks, T frames, S pattern steps, V codebook size, D model width, P prepended steps, M states of
the memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core.conditions import Condition
from ..core.mfu import transformer_flops
from .batches import TokenBatches
from .language_model import LanguageModel
from .transformer_config import TransformerConfig


def clip_flops(
    config: TransformerConfig, num_frames: int, num_states: Mapping[str, int], *, causal: bool = True
) -> float:
    """Floating-point operations of the forward and backward pass over one clip of `num_frames` frames.

    Matrix products alone count, as in PaLM (arXiv:2204.02311, appendix B): two operations for each weight and
    vector forward and four backward, two where the vector is data and needs no gradient. So embeddings of
    tokens and labels cost nothing; tags and states of conditions are products with data; the blocks go over
    S + P steps, and their memory's keys and values over M states; the head predicts the T frames of one
    codebook at a time. Attention adds 12 D a pair of positions and layer, half of that where `causal`.

    Args:
        config: the model.
        num_frames: T.
        num_states: how many vectors a clip has of each sequence among the conditions.
        causal: count only the half of self-attention that is not masked.
    """
    dim, num_layers = config.dim, config.num_layers
    states = {c.name: num_states[c.name] if c.kind == "sequence" else 1 for c in config.conditions}
    num_prepended, num_memory = (
        sum(states[condition.name] for condition in config.conditions.fused_by(fuse))
        for fuse in ("prepend", "cross")
    )
    kv_dim = config.kv_heads * config.head_dim
    attention = dim * (dim + 2 * kv_dim) + dim * dim
    cross_attention = 2 * dim * dim if config.has_memory else 0
    feed_forward = (3 if config.activation == "swiglu" else 2) * dim * config.hidden_dim
    weights = num_layers * (attention + cross_attention + feed_forward)
    num_steps = config.make_pattern().num_steps(num_frames) + num_prepended
    blocks = num_steps * transformer_flops(weights, num_layers, dim, num_steps, causal=causal)
    memory = num_memory * num_layers * (6 * dim * 2 * kv_dim + 12 * dim * num_steps)
    head = 6 * num_frames * config.num_codebooks * dim * config.codebook_size
    # Four operations: vectors are data. Six: a number's features are trained.
    told = sum((6 if c.kind == "number" else 4) * dim * states[c.name] * _width(c) for c in config.conditions)
    return float(blocks + memory + head + told)


def _width(condition: Condition) -> int:
    """How many numbers each of a condition's states is a matrix product with."""
    if condition.kind == "label":
        return 0
    if condition.kind == "number":
        return condition.width + 1
    if condition.kind == "tags":
        return condition.num_rows
    return condition.width if condition.project else 0


def flops_per_token(lm: LanguageModel, batches: TokenBatches) -> float | None:
    """The mean over all that `batches` are cropped from, for one of the K tokens of a frame.

    None where nobody has counted the operations: of other families, and where some weights are not trained.
    Padding is work that nobody asked for.
    """
    if not all(parameter.requires_grad for parameter in lm.parameters()):
        return None
    crop = batches.num_frames
    lengths = batches.split.num_frames
    frames, which = np.unique(np.minimum(lengths, crop), return_inverse=True)
    counts = np.bincount(which, weights=np.maximum(1, lengths // crop))  # crops of each length in one pass
    total = 0.0
    for num_frames, count in zip(frames.tolist(), counts.tolist(), strict=True):
        flops = lm.clip_flops(num_frames, batches.num_states(num_frames))
        if flops is None:
            return None
        total += count * flops
    return total / float(counts @ frames) / lm.config.num_codebooks
