"""A small UNet over the frames of latents: residual blocks at several frame rates, attention at the lowest.

The plan is that of arXiv:2006.11239 (appendix B), in one dimension. Time and conditions enter every block by
FiLM (arXiv:1709.07871). Norms look at one frame at a time and not at the whole clip, so that a clip does not
depend on how far it is padded.

Shapes: B batch, D latent width, D_in width of the input, T frames, C channels of a level, W channels of the
lowest level, which is also the width of the vectors that conditions become.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.attention import Backend, SeenKeys, usable_backend
from ...core.conditioner import Conditioner
from ...core.conditions import GivenConditions
from ...core.errors import UserError
from ...core.rotary import rotary_tables
from .dit_blocks import Block, BlockShape, Surroundings, block_flops, blocks_in
from .network import Conditioned, KeysValues, Network, NetworkConfig, TimeEmbedding, told_flops


@dataclass(frozen=True, kw_only=True)
class UNet1dConfig(NetworkConfig):
    """Everything that decides the shape of a `UNet1d`."""

    kind: ClassVar[str] = "unet"

    channels: tuple[int, ...] = (64, 128, 256)
    """C of each level; each but the first has half the frame rate of the one before."""
    num_blocks: int = 1
    """Residual blocks of each level, on the way down and on the way up."""
    num_attention_blocks: int = 1
    """Transformer blocks at the lowest level."""
    num_heads: int = 4
    """Of attention; must divide the lowest level's channels into heads of even width."""

    def __post_init__(self) -> None:
        if not self.channels or self.channels[-1] % (2 * self.num_heads):
            raise UserError(
                f"channels {list(self.channels)} must end with a multiple of 2 * num_heads ="
                f" {2 * self.num_heads} (heads need an even width)"
            )
        prepended = self.conditions.fused_by("prepend")
        if prepended:
            raise UserError(
                f"a UNet has no place before the frames: fuse condition {prepended[0].name!r} by sum or cross"
            )

    @property
    def factor(self) -> int:
        """Frames that are one at the lowest level."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def block_shape(self) -> BlockShape:
        """What the blocks of the lowest level are made of."""
        width = self.channels[-1]
        return BlockShape(
            dim=width,
            num_heads=self.num_heads,
            hidden_dim=2 * width,
            memory_dim=width if self.conditions.fused_by("cross") else None,
            num_memory_heads=self.num_heads,
        )


class FrameNorm(nn.Module):
    """RMSNorm (arXiv:1910.07467, eq. 4) of each frame's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] to the same."""
        size = x.float().square().mean(1, keepdim=True)
        return x * torch.rsqrt(size + 1e-6).to(x.dtype) * self.weight[:, None].to(x.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions over three frames each; time and conditions scale and shift between them."""

    def __init__(self, num_in: int, num_out: int, global_dim: int) -> None:
        super().__init__()
        self.norm = FrameNorm(num_in)
        self.conv = nn.Conv1d(num_in, num_out, 3, padding=1)
        self.film = nn.Linear(global_dim, 2 * num_out)
        self.second_norm = FrameNorm(num_out)
        self.second_conv = nn.Conv1d(num_out, num_out, 3, padding=1)
        self.skip = nn.Conv1d(num_in, num_out, 1) if num_in != num_out else nn.Identity()
        nn.init.zeros_(self.second_conv.weight)
        assert self.second_conv.bias is not None
        nn.init.zeros_(self.second_conv.bias)

    def forward(self, x: Tensor, global_vector: Tensor, mask: Tensor | None) -> Tensor:
        """[B, C_in, T] to [B, C, T], given [B, W]; frames that are 0 in `mask` [B, 1, T] are not seen."""
        h = self.conv(_masked(F.silu(self.norm(x)), mask))
        scale, shift = self.film(F.silu(global_vector))[..., None].chunk(2, dim=1)
        h = F.silu(self.second_norm(h) * (1 + scale) + shift)
        y: Tensor = self.skip(x) + self.second_conv(_masked(h, mask))
        return y


class Level(nn.Module):
    """Blocks of one frame rate, on the way down or up."""

    def __init__(self, num_in: int, num_out: int, num_blocks: int, global_dim: int) -> None:
        super().__init__()
        widths = [num_in] + [num_out] * num_blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b, global_dim) for a, b in pairwise(widths))

    def forward(self, x: Tensor, global_vector: Tensor, mask: Tensor | None) -> Tensor:
        """As its blocks."""
        for block in self.blocks:
            x = block(x, global_vector, mask)
        return x


class UNet1d(Network):
    """A UNet over frames; untrained, it predicts 0."""

    config_class = UNet1dConfig
    config: UNet1dConfig

    def __init__(self, config: UNet1dConfig) -> None:
        super().__init__()
        self.config = config
        channels, width, count = config.channels, config.channels[-1], config.num_blocks
        steps = list(pairwise(channels))
        self.embed = nn.Conv1d(config.in_dim, channels[0], 1)
        self.time = TimeEmbedding(width)
        self.conditioner = Conditioner(config.conditions, width)
        self.down = nn.ModuleList(Level(c, c, count, width) for c in channels)
        self.shrink = nn.ModuleList(nn.Conv1d(a, b, 4, stride=2, padding=1) for a, b in steps)
        self.attention = nn.ModuleList(Block(config.block_shape) for _ in range(config.num_attention_blocks))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(b, a, 4, stride=2, padding=1) for a, b in steps)
        self.up = nn.ModuleList(Level(2 * c, c, count, width) for c in channels)
        self.norm = FrameNorm(channels[0])
        self.head = nn.Conv1d(channels[0], config.latent_dim, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        for block in blocks_in(self.attention):
            block.begin_as_nothing()

    @property
    def blocks(self) -> list[nn.Module]:
        """What activation checkpointing keeps the inputs of."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock | Block)]

    def use_attention(self, backend: Backend) -> None:
        """Compute self-attention with `backend` where it runs on the network's device; else a line says why
        not."""
        self.backend = usable_backend(backend, self.device, self.config.block_shape.head_dim)

    def condition(self, given: GivenConditions, batch_size: int, *, keep_keys: bool = False) -> Conditioned:
        """See `Network`."""
        fused = self.conditioner(given, batch_size)
        conditioned = Conditioned(fused.added, memory=fused.memory, memory_mask=fused.memory_mask)
        if keep_keys and fused.memory is not None:
            conditioned.keys_values = [
                block.memory_keys_values(fused.memory) for block in blocks_in(self.attention)
            ]
        return conditioned

    def predict(
        self, x: Tensor, time: Tensor, conditioned: Conditioned, *, mask: Tensor | None = None
    ) -> Tensor:
        """See `Network`."""
        num_frames = x.shape[2]
        self._check_length(num_frames)
        missing = -num_frames % self.config.factor
        if missing and mask is None:
            mask = torch.ones(x.shape[0], num_frames, dtype=torch.bool, device=x.device)
        seen = None if mask is None else F.pad(mask, (0, missing))
        global_vector = self.time(time)
        if conditioned.added is not None:
            global_vector = global_vector + conditioned.added

        # Frames that are no frames are 0 wherever a convolution sees them, as beyond the end of a clip.
        masks = [seen]
        for _ in self.shrink:
            masks.append(None if masks[-1] is None else masks[-1].view(len(x), -1, 2).any(2))
        floats = [None if one is None else one[:, None].to(x.dtype) for one in masks]
        h = self.embed(_masked(F.pad(x, (0, missing)), floats[0]))
        skips = []
        for i, level in enumerate(self.down):
            h = level(h, global_vector, floats[i])
            skips.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](_masked(h, floats[i]))
        h = self._attend(h, global_vector, conditioned, masks[-1])
        for i in reversed(range(len(self.up))):
            h = self.up[i](torch.cat([h, skips[i]], dim=1), global_vector, floats[i])
            if i:
                h = self.grow[i - 1](_masked(h, floats[i]))
        y: Tensor = self.head(F.silu(self.norm(h)))
        return y[:, :, :num_frames]

    def _attend(
        self, h: Tensor, global_vector: Tensor, conditioned: Conditioned, mask: Tensor | None
    ) -> Tensor:
        cos, sin = rotary_tables(torch.arange(h.shape[2], device=h.device), self.config.block_shape.head_dim)
        around = Surroundings(
            (cos[:, None], sin[:, None]),
            None if mask is None else SeenKeys(mask),
            global_vector,
            conditioned.memory,
            conditioned.memory_mask,
            self.backend,
        )
        known: Sequence[KeysValues | None] = conditioned.keys_values or [None] * len(self.attention)
        x = h.transpose(1, 2)
        for block, keys_values in zip(self.attention, known, strict=True):
            x = block(x, around, keys_values)
        return x.transpose(1, 2)

    def clip_flops(self, num_frames: int, num_states: Mapping[str, int]) -> float:
        """See `Network`."""
        config = self.config
        length = -(-num_frames // config.factor) * config.factor
        total = 4.0 * length * config.in_dim * config.channels[0]
        total += 6.0 * length * config.channels[0] * config.latent_dim
        for i, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            convs = [conv for side in (down, up) for conv in side.modules() if isinstance(conv, nn.Conv1d)]
            total += 6.0 * (length >> i) * sum(conv.weight.numel() for conv in convs)
        for i, (shrink, grow) in enumerate(zip(self.shrink, self.grow, strict=True)):
            total += 6.0 * (length >> (i + 1)) * (shrink.weight.numel() + grow.weight.numel())  # type: ignore[operator]
        films = [block.film.weight.numel() for block in self.modules() if isinstance(block, ResidualBlock)]
        states = {c.name: num_states.get(c.name, 1) for c in config.conditions}
        num_memory = sum(states[c.name] for c in config.conditions.fused_by("cross"))
        attention = block_flops(config.block_shape, length // config.factor, num_memory)
        width = config.channels[-1]
        told = told_flops(config.conditions, num_states, width)
        vectors = 6 * sum(films) + 6 * width * width + 4 * width * self.time.num_features
        return total + config.num_attention_blocks * attention + told + vectors


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """[B, C, T], 0 where `mask` [B, 1, T] is."""
    return x if mask is None else x * mask
