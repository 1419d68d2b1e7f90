"""A decoder-only Transformer over the tokens of a neural codec.

One step of the sequence holds at most one token of each of the K codebooks (`patterns.py` says which): their
embeddings are summed into one vector, the blocks mix the steps causally, and one head predicts the K tokens
of the next step, each given everything before that step. Conditions are added to every step, stand before the
first one, or are attended to by cross-attention (`core/conditioner.py`).

Blocks are pre-norm, and nothing has a bias but LayerNorm. By default: RMSNorm, rotary positions, normalised
queries and keys, SwiGLU. `transformer_config.py` has the options, which also express MusicGen
(arXiv:2306.05284, sec. 2 and 3.1).

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size, D model width, H heads, H_kv key
heads, P prepended steps, M states of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.attention import Backend, Visible, attend, attend_memory, usable_backend
from ..core.conditioner import Conditioner, Fused
from ..core.conditions import GivenConditions
from ..core.rms_norm import RMSNorm
from ..core.rotary import rotary_tables, rotate
from .decoders.decoder import Prepared, Weights
from .language_model import LanguageModel, LMLoss
from .transformer_config import TransformerConfig

__all__ = ["KVCache", "TransformerConfig", "TransformerLM"]

INIT_STD = 0.02


class KVCache:
    """Keys and values of the steps so far, in buffers that never move or grow, and those of the memory."""

    def __init__(
        self,
        config: TransformerConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`max_length` counts the prepended steps too."""
        shape = config.num_layers, batch_size, config.kv_heads, max_length, config.head_dim
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.max_length = max_length
        self.length = 0
        """Steps that every layer has seen."""
        self.fused: Fused | None = None
        """What the conditions have become, at the first step."""
        self.memories: list[tuple[Tensor, Tensor]] = []
        """Keys and values of the memory, one pair a layer."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H_kv, S, D/H] after the filled part; returns views of all, [B, H_kv, length + S, D/H].

        Raises `ValueError` where the buffers are too short.
        """
        end = self.length + keys.shape[2]
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} steps, {end} are needed")
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


@dataclass
class Surroundings:
    """What all blocks are given beside the residual stream."""

    visible: Visible
    rotary: tuple[Tensor, Tensor] | None
    """Cosines and sines of the positions' angles."""
    memory: Tensor | None = None  # [B, M, D]
    memory_mask: Tensor | None = None  # [B, M] bool
    cache: KVCache | None = None
    backend: Backend = "sdpa"


def sinusoid_frequencies(dim: int, device: torch.device) -> Tensor:
    """Angles of a step, from 1 to 1/10000: [D/2] float32."""
    # Rounded as in transformers: at position 1500 another way to these frequencies is 1e-4 off.
    return torch.exp(torch.arange(dim // 2, device=device).float() * -(math.log(10000) / (dim // 2 - 1)))


# As in audiocraft and tensor2tensor: "Attention Is All You Need", arXiv:1706.03762, sec. 3.5, but with the
# cosines first and D/2 - 1 in the exponent.
def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of `positions` [..., S] at D/2 frequencies from 1 to 1/10000: [..., S, D]."""
    angles = positions[..., None] * sinusoid_frequencies(dim, positions.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def make_norm(config: TransformerConfig) -> nn.Module:
    """The normalisation before each branch."""
    return RMSNorm(config.dim, eps=1e-6) if config.norm == "rmsnorm" else nn.LayerNorm(config.dim, eps=1e-5)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.widths = [config.dim, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim]
        self.qkv = nn.Linear(config.dim, sum(self.widths), bias=False)
        self.q_norm = RMSNorm(config.head_dim, eps=1e-6) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, eps=1e-6) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        # [B, S, D + 2 H_kv · D/H] to [B, H, S, D/H] and two of [B, H_kv, S, D/H]
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.qkv(x).split(self.widths, dim=-1)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if around.rotary is not None:
            q, k = rotate(q, *around.rotary), rotate(k, *around.rotary)
        if around.cache is not None:
            k, v = around.cache.extend(self.layer, k, v)
        y: Tensor = self.out(attend(q, k, v, around.visible, around.backend).transpose(1, 2).flatten(2))
        return y


class CrossAttention(nn.Module):
    """Attention to the memory of conditions; its keys and values do not change while a clip is generated."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.key_value = nn.Linear(config.dim, 2 * config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Of the memory [B, M, D]: two [B, H_kv, M, D/H]."""
        k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.key_value(memory).chunk(2, dim=-1)
        )
        return k, v

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        assert around.memory is not None
        if around.cache is None:
            k, v = self.keys_values(around.memory)
        else:
            if len(around.cache.memories) == self.layer:  # the first step of a cache that begins here
                around.cache.memories.append(self.keys_values(around.memory))
            k, v = around.cache.memories[self.layer]
        q = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        y: Tensor = self.out(attend_memory(q, k, v, around.memory_mask).transpose(1, 2).flatten(2))
        return y


class FeedForward(nn.Module):
    """Feed-forward layer: SwiGLU (arXiv:2002.05202, eq. 6), or plain with GELU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.is_gated = config.activation == "swiglu"
        self.up = nn.Linear(config.dim, (2 if self.is_gated else 1) * config.hidden_dim, bias=False)
        self.down = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        hidden = self.up(x)
        if self.is_gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden)
        y: Tensor = self.down(hidden)
        return y


class Block(nn.Module):
    """One layer: attention, cross-attention if there is a memory, and feed-forward, each pre-norm."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.cross_norm = make_norm(config) if config.has_memory else None
        self.cross_attention = CrossAttention(config, layer) if config.has_memory else None
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), around))
        if self.cross_attention is not None:
            assert self.cross_norm is not None
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), around))
        y: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return y


class TokenLoss(nn.Module):
    """Cross-entropy of the tokens of one codebook, their sum; a module of its own so that `train.compile` can
    make one pass over the logits of it."""

    def forward(self, hidden: Tensor, steps: Tensor, weight: Tensor, codes: Tensor, ignored: int) -> Tensor:
        """Of codes [B, T], predicted at `steps` [T] of `hidden` [B, S, D] by a head's weights [V, D]."""
        logits = F.linear(hidden.index_select(1, steps), weight).flatten(0, 1)  # [B·T, V]
        return F.cross_entropy(logits.float(), codes.flatten(), ignore_index=ignored, reduction="sum")


class TransformerLM(LanguageModel):
    """A Transformer over codes [B, K, T]; `forward` is its training loss, `logits` its prediction."""

    config_class = TransformerConfig
    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.pattern = config.make_pattern()
        self.backend: Backend = "sdpa"
        # All tables are one, and the rows of codebook k begin at its offset.
        self.token_embedding = nn.Embedding((config.codebook_size + 1) * config.num_codebooks, config.dim)
        self.conditioner = Conditioner(config.conditions, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.dim, config.num_codebooks * config.codebook_size, bias=False)
        self.token_loss = TokenLoss()
        self.also_compiled = [self.token_loss]

        token_offsets = torch.arange(config.num_codebooks) * (config.codebook_size + 1)
        self.register_buffer("token_offsets", token_offsets, persistent=False)
        self.token_offsets: Tensor  # [K]
        self._init_weights()

    def _init_weights(self) -> None:
        """Normal with standard deviation 0.02, less where layers add up or where it would bias the loss."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
        for block in self.blocks:
            assert isinstance(block, Block)
            for branch_end in (block.attention.out, block.feed_forward.down):
                nn.init.normal_(branch_end.weight, std=INIT_STD / math.sqrt(2 * self.config.num_layers))
        # The last norm gives vectors of length sqrt(D): logits deviate by 0.02, so the loss begins at ln V.
        nn.init.normal_(self.head.weight, std=INIT_STD / math.sqrt(self.config.dim))

    @classmethod
    def from_musicgen(
        cls,
        source: str | Path | nn.Module,
        *,
        revision: str | None = None,
        codec: str | None = None,
        text_encoder: str | None = None,
    ) -> TransformerLM:
        """A MusicGen (arXiv:2306.05284) with its weights, in float32 and in evaluation mode.

        Its conditions are `text` [L, E], the states of its text encoder, and for melody models `melody`
        [L, 12], one-hot chroma; a bare decoder takes states of its own width as `text`, or as `prefix` if it
        is a melody model's. What it says of its codec and text encoder goes into the configuration. Of
        dropout only that on branches is taken over; published models have no other.

        Args:
            source: a hub id, a folder in the hub's layout, or a model of `transformers`
                (`MusicgenForConditionalGeneration`, `MusicgenForCausalLM`, or their `Melody` kinds).
            revision: commit, branch or tag on the Hub.
            codec: what `load_codec` calls its codec, where that is not what the source says.
            text_encoder: the same for the text encoder.

        Raises `UserError` if it cannot be had, is no MusicGen, or its tensors are not exactly those that its
        configuration asks for. `musicgen.to_musicgen` is the way back.
        """
        from .musicgen.conversion import load_musicgen

        return load_musicgen(source, revision=revision, codec=codec, text_encoder=text_encoder)

    def use_attention(self, backend: Backend) -> None:
        """Compute attention with `backend` where it runs on the model's device; else a line says why not."""
        self.backend = usable_backend(backend, self.device, self.config.head_dim)

    # ------------------------------------------------------------------------------------------ prediction

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """The sum of the K tokens' embeddings: [B, K, S] to [B, S, D]."""
        batch_size, num_codebooks, num_steps = tokens.shape
        rows = (tokens + self.token_offsets[:, None]).transpose(1, 2).reshape(-1, num_codebooks)
        return F.embedding_bag(rows, self.token_embedding.weight, mode="sum").view(batch_size, num_steps, -1)

    def hidden_states(
        self,
        tokens: Tensor,
        conditions: GivenConditions | None = None,
        cache: KVCache | None = None,
        clips: Tensor | None = None,
    ) -> Tensor:
        """What the head reads: tokens [B, K, S] and the rest as in `logits` to [B, S, D].

        With `clips` [B, S] int64, a row holds several clips one after another: the clip of each step, as its
        number among the conditions (those that are added; prepended ones and memories have no place there).
        """
        x = self.embed_tokens(tokens)
        start = 0 if cache is None else cache.length
        fused = cache.fused if cache is not None else None
        if fused is None:
            num_clips = tokens.shape[0] if clips is None or not conditions else _num_clips(conditions)
            fused = self.conditioner(conditions or {}, num_clips)
        if clips is not None and (fused.prefix is not None or fused.memory is not None):
            raise ValueError("clips can share a row only if all conditions are summed into the steps")
        if fused.added is not None:
            x = x + (fused.added[:, None] if clips is None else fused.added[_clip_rows(clips, fused.added)])
        num_prepended = 0
        if fused.prefix is not None and start == 0:
            num_prepended = fused.prefix.shape[1]
            x = torch.cat([fused.prefix.to(x.dtype), x], dim=1)

        num_steps = x.shape[1]
        seen_keys = None
        positions = torch.arange(start, start + num_steps, device=x.device)  # [S]; [B, S] where rows differ
        if fused.prefix_mask is not None:
            seen_keys = F.pad(
                fused.prefix_mask, (0, start + num_steps - fused.prefix_mask.shape[1]), value=True
            )
            # Padding takes no place: a clip would otherwise depend on how long the others' sequences are.
            positions = (seen_keys.cumsum(1) - 1).clamp(min=0)[:, start:]
        if clips is not None:
            positions = _positions_in_clips(clips)
        rotary = None
        if self.config.positions == "rope":
            # [B, 1, S], for all heads
            rotary = rotary_tables(positions.unsqueeze(-2), self.config.head_dim)
        else:
            x = x + sinusoids(positions, self.config.dim).to(x.dtype)
        around = Surroundings(
            Visible(num_steps, start, seen_keys, clips),
            rotary,
            fused.memory,
            fused.memory_mask,
            cache,
            self.backend,
        )
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, around)
        if cache is not None:
            cache.length += num_steps
            cache.fused = fused
        y: Tensor = self.norm(x[:, num_prepended:])
        return y

    def logits(
        self, tokens: Tensor, conditions: GivenConditions | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Unnormalised log-probabilities of the next step's tokens: [B, K, S, V].

        The input `tokens` [B, K, S] is the sequence that `pattern.apply` makes, one step late: step 0 holds
        the special token in every codebook (it begins the sequence), step s holds pattern step s - 1. Output
        s predicts pattern step s, which is input step s + 1. What it says about a codebook that has no token
        at that step means nothing.

        Conditions that are not given are hidden. With a `cache` the tokens are those that follow the ones
        that it has seen, and it then has seen these too; it keeps the conditions of the first call.
        """
        y = self.head(self.hidden_states(tokens, conditions, cache))
        return y.unflatten(-1, (self.config.num_codebooks, -1)).transpose(1, 2)  # type: ignore[no-any-return]

    def next_logits(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """The last step of `logits` alone: tokens [B, K, S] to [B, K, V]."""
        y = self.head(self.hidden_states(tokens, cache=cache)[:, -1])
        return y.unflatten(-1, (self.config.num_codebooks, -1))  # type: ignore[no-any-return]

    def memory_keys_values(self, memory: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Of a memory [B, M, D], those of each layer; none without a memory."""
        if memory is None:
            return []
        layers = [block.cross_attention for block in self.blocks]
        return [layer.keys_values(memory) for layer in layers if isinstance(layer, CrossAttention)]

    def prepare(self, weights: Weights = "fp32") -> Prepared:
        """See `decoders/transformer_decoder.py`."""
        from .decoders.transformer_decoder import prepare_transformer

        return prepare_transformer(self, weights)

    # -------------------------------------------------------------------------------------------- training

    def clip_flops(self, num_frames: int, num_states: Mapping[str, int]) -> float:
        """See `flops.py`."""
        from .flops import clip_flops

        return clip_flops(self.config, num_frames, num_states)

    def forward(
        self,
        codes: Tensor,
        conditions: GivenConditions | None = None,
        frame_mask: Tensor | None = None,
        clips: Tensor | None = None,
    ) -> LMLoss:
        """The loss of codes [B, K, T] under `conditions` (None: all hidden).

        Frames that are False in `frame_mask` [B, T] (the padding of a short clip) are neither seen nor
        counted, so a padded clip has exactly the loss of the clip alone. (Not under the pattern
        `coarse_first`, whose second half begins where the padding ends.)

        With `clips` [B, T] int64, rows hold several clips, `pattern.gap` masked frames after each: the number
        of the clip that each frame belongs to, the gap after it included. Clips do not see each other, and
        each has the loss that it has alone.
        """
        config = self.config
        num_frames = codes.shape[2]
        if frame_mask is not None:
            codes = codes.masked_fill(~frame_mask[:, None], config.special)
        sequence = self.pattern.apply(codes, config.special)
        inputs = F.pad(sequence[:, :, :-1], (1, 0), value=config.special)
        steps = self.pattern.steps(num_frames, codes.device)
        if clips is not None:
            if not self.pattern.packs:
                raise ValueError(f"clips cannot share a row under {self.pattern}")
            clips = _clips_of_steps(clips, steps.amin(0), sequence.shape[2])
            begins = F.pad(clips[:, 1:] != clips[:, :-1], (1, 0), value=True)
            inputs = inputs.masked_fill(begins[:, None], config.special)
        hidden = self.hidden_states(inputs, conditions, clips=clips)

        # One codebook at a time, at the steps where it has a token: against one product for all codebooks and
        # steps this saves a third of the time on a CPU, because the logits stay small enough to be cached.
        weights = self.head.weight.view(config.num_codebooks, config.codebook_size, config.dim).unbind(0)
        sums = [
            self.token_loss(hidden, steps[k], weight, codes[:, k], config.special)
            for k, weight in enumerate(weights)
        ]
        num_tokens = (codes[:, 0] != config.special).sum() * config.num_codebooks
        total = torch.stack(sums)  # [K]
        count = num_tokens.clamp(min=1)
        return LMLoss(total.sum() / count, num_tokens, (total * config.num_codebooks / count).detach())


def _num_clips(conditions: GivenConditions) -> int:
    return next(iter(conditions.values())).batch_size


def _clip_rows(clips: Tensor, added: Tensor) -> Tensor:
    """Rows of `added` for each step; steps of no clip (-1) take any, since nobody looks at them."""
    return clips.clamp(min=0, max=added.shape[0] - 1)


def _clips_of_steps(clips: Tensor, first_steps: Tensor, num_steps: int) -> Tensor:
    """The clip of every step [B, S], from that of every frame [B, T] and each frame's first step [T]."""
    frames = torch.zeros(num_steps, dtype=torch.int64, device=clips.device)
    frames[first_steps] = torch.arange(clips.shape[1], device=clips.device)
    return clips[:, frames.cummax(0).values]


def _positions_in_clips(clips: Tensor) -> Tensor:
    """How many steps each step [B, S] stands after the beginning of its clip."""
    steps = torch.arange(clips.shape[1], device=clips.device).expand_as(clips)
    begins = F.pad(clips[:, 1:] != clips[:, :-1], (1, 0), value=True)
    return steps - torch.where(begins, steps, 0).cummax(1).values
