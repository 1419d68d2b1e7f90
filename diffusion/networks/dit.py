"""A diffusion Transformer over the frames of latents: DiT (arXiv:2212.09748), in one dimension.

Some frames side by side are one token (`patch_size`). Time and the conditions that are summed are one vector,
which modulates every block (adaLN-zero, sec. 3.2); others stand as tokens before the frames, or are attended
to by cross-attention. Positions are rotary, and those of frames do not depend on what stands before them.

Shapes: B batch, D latent width, D_in width of the input, T frames, W model width, S tokens of frames,
P prepended tokens, R registers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.attention import Backend, SeenKeys, usable_backend
from ...core.conditioner import Conditioner
from ...core.conditions import GivenConditions
from ...core.errors import UserError
from ...core.rotary import rotary_tables
from .dit_blocks import Block, BlockShape, Surroundings, block_flops, blocks_in, modulate
from .network import INIT_STD, Conditioned, KeysValues, Network, NetworkConfig, TimeEmbedding, told_flops


@dataclass(frozen=True, kw_only=True)
class DiTConfig(NetworkConfig):
    """Everything that decides the shape of a `DiT`."""

    kind: ClassVar[str] = "dit"

    dim: int = 256
    """W, the width of the residual stream."""
    num_layers: int = 6
    num_heads: int = 4
    """Must divide `dim` into heads of even width."""
    feed_forward_dim: int | None = None
    """Hidden width of the feed-forward layers; None: 8/3 W."""
    patch_size: int = 1
    """Frames that are one token."""
    num_registers: int = 0
    """R learned tokens before all others, which tell nothing and are not predicted (arXiv:2309.16588)."""
    qk_norm: bool = True
    """RMSNorm of queries and keys, head by head."""

    def __post_init__(self) -> None:
        if self.dim % (2 * self.num_heads):
            raise UserError(
                f"dim {self.dim} must be a multiple of 2 * num_heads = {2 * self.num_heads}"
                " (heads need an even width)"
            )

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the feed-forward layers."""
        return self.feed_forward_dim or 32 * math.ceil(8 * self.dim / 3 / 32)

    @property
    def block_shape(self) -> BlockShape:
        """What each block is made of."""
        return BlockShape(
            dim=self.dim,
            num_heads=self.num_heads,
            hidden_dim=self.hidden_dim,
            memory_dim=self.dim if self.conditions.fused_by("cross") else None,
            num_memory_heads=self.num_heads,
            qk_norm=self.qk_norm,
        )


class DiT(Network):
    """A diffusion Transformer; untrained, it predicts 0."""

    config_class = DiTConfig
    config: DiTConfig

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        self.embed = nn.Linear(patch * config.in_dim, dim)
        self.time = TimeEmbedding(dim)
        self.conditioner = Conditioner(config.conditions, dim)
        num_registers = config.num_registers
        self.registers = nn.Parameter(torch.empty(num_registers, dim)) if num_registers else None
        self.blocks = nn.ModuleList(Block(config.block_shape) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, patch * config.latent_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """Normal with standard deviation 0.02; zero where a branch or the output begins as nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.registers is not None:
            nn.init.normal_(self.registers, std=INIT_STD)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
        for block in blocks_in(self.blocks):
            block.begin_as_nothing()

    def use_attention(self, backend: Backend) -> None:
        """Compute self-attention with `backend` where it runs on the network's device; else a line says why
        not."""
        self.backend = usable_backend(backend, self.device, self.config.block_shape.head_dim)

    def condition(self, given: GivenConditions, batch_size: int, *, keep_keys: bool = False) -> Conditioned:
        """See `Network`."""
        fused = self.conditioner(given, batch_size)
        conditioned = Conditioned(
            fused.added, fused.prefix, fused.prefix_mask, fused.memory, fused.memory_mask
        )
        if keep_keys and fused.memory is not None:
            conditioned.keys_values = [b.memory_keys_values(fused.memory) for b in blocks_in(self.blocks)]
        return conditioned

    def predict(
        self, x: Tensor, time: Tensor, conditioned: Conditioned, *, mask: Tensor | None = None
    ) -> Tensor:
        """See `Network`."""
        num_frames = x.shape[2]
        self._check_length(num_frames)
        patches, patch_mask = self._patches(x, mask)
        tokens = self.embed(patches)  # [B, S, W]
        batch_size, num_tokens, _ = tokens.shape
        prepended = [] if self.registers is None else [self.registers.expand(batch_size, -1, -1)]
        if conditioned.prefix is not None:
            prepended.append(conditioned.prefix.to(tokens.dtype))
        h = torch.cat([*prepended, tokens], dim=1)
        num_prepended = h.shape[1] - num_tokens

        global_vector = self.time(time)
        if conditioned.added is not None:
            global_vector = global_vector + conditioned.added
        around = Surroundings(
            self._rotary(conditioned, num_tokens, h.device),
            self._seen(conditioned, patch_mask, batch_size, num_tokens, h.device),
            global_vector,
            conditioned.memory,
            conditioned.memory_mask,
            self.backend,
        )
        known: Sequence[KeysValues | None] = conditioned.keys_values or [None] * len(self.blocks)
        for block, keys_values in zip(self.blocks, known, strict=True):
            h = block(h, around, keys_values)
        shift, scale = self.modulation(F.silu(global_vector))[:, None].chunk(2, dim=-1)
        y = self.head(modulate(self.norm(h[:, num_prepended:]), shift, scale))
        return y.reshape(batch_size, -1, self.latent_dim)[:, :num_frames].transpose(1, 2)  # type: ignore[no-any-return]

    def _patches(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, D_in, T] to [B, S, patch · D_in], zero where masked, and which tokens hold a frame [B, S]."""
        size = self.config.patch_size
        if mask is not None:
            x = x * mask[:, None]
        missing = -x.shape[2] % size
        if missing:
            x = F.pad(x, (0, missing))
        patches = x.transpose(1, 2).reshape(x.shape[0], x.shape[2] // size, -1)
        if mask is None:
            return patches, None
        return patches, F.pad(mask, (0, missing)).view(len(x), -1, size).any(2)

    def _rotary(
        self, conditioned: Conditioned, num_tokens: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Frames stand at 0 and after, what is prepended before 0, its padding left out."""
        prefix, seen = conditioned.prefix, conditioned.prefix_mask
        num_prefix = 0 if prefix is None else prefix.shape[1]
        registers = torch.arange(-self.config.num_registers, 0, device=device)
        frames = torch.arange(num_tokens, device=device)
        if seen is None:
            before = torch.arange(-num_prefix, 0, device=device)
            positions = torch.cat([registers - num_prefix, before, frames])  # [R + P + S]
        else:
            length = seen.sum(1, keepdim=True)
            before = seen.cumsum(1) - 1 - length
            positions = torch.cat(
                [registers - length, before, frames.expand(len(seen), -1)], dim=1
            )  # [B, R + P + S]
        cos, sin = rotary_tables(positions, self.config.block_shape.head_dim)
        return cos.unsqueeze(-2), sin.unsqueeze(-2)

    def _seen(
        self,
        conditioned: Conditioned,
        patch_mask: Tensor | None,
        batch_size: int,
        num_tokens: int,
        device: torch.device,
    ) -> SeenKeys | None:
        if patch_mask is None and conditioned.prefix_mask is None:
            return None
        num_prefix = 0 if conditioned.prefix is None else conditioned.prefix.shape[1]

        def given_or_all(seen: Tensor | None, length: int) -> Tensor:
            if seen is not None:
                return seen
            return torch.ones(batch_size, length, dtype=torch.bool, device=device)

        parts = [
            given_or_all(None, self.config.num_registers),
            given_or_all(conditioned.prefix_mask, num_prefix),
            given_or_all(patch_mask, num_tokens),
        ]
        return SeenKeys(torch.cat(parts, dim=1))

    def clip_flops(self, num_frames: int, num_states: Mapping[str, int]) -> float:
        """See `Network`."""
        config = self.config
        states = {c.name: num_states.get(c.name, 1) for c in config.conditions}
        num_prefix, num_memory = (
            sum(states[c.name] for c in config.conditions.fused_by(fuse)) for fuse in ("prepend", "cross")
        )
        num_frame_tokens = math.ceil(num_frames / config.patch_size)
        num_tokens = config.num_registers + num_prefix + num_frame_tokens
        blocks = config.num_layers * block_flops(config.block_shape, num_tokens, num_memory)
        ends = num_frame_tokens * config.patch_size * (4 * config.in_dim + 6 * config.latent_dim) * config.dim
        vectors = 6 * config.dim * (2 * config.dim + config.dim) + 4 * config.dim * self.time.num_features
        told = told_flops(config.conditions, num_states, config.dim)
        return blocks + ends + vectors + told
