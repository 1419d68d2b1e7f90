"""The network of Stable Audio Open (arXiv:2407.14358, sec. 3): a diffusion Transformer over latents.

It is made of the blocks of `DiT`, with norms of their own in place of modulation: time and timing are one
token before the frames. A prompt's states and the two timings, where a clip begins in its recording and how
long that is, are attended to. `files.py` reads and writes it as `diffusers` does.

Shapes: B batch, D latent width, D_in width of the input, T frames, W model width, Dh width of a head, E width
of conditions, M states of the memory.
"""

from __future__ import annotations

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
from ..networks.dit_blocks import Block, BlockShape, Surroundings, block_flops, blocks_in
from ..networks.network import Conditioned, KeysValues, Network, NetworkConfig, TimeEmbedding, told_flops

TIMINGS = ("seconds_start", "seconds_total")


@dataclass(frozen=True, kw_only=True)
class StableAudioConfig(NetworkConfig):
    """Everything that decides the shape of a `StableAudio`; defaults are those of Stable Audio Open 1.0."""

    kind: ClassVar[str] = "stable_audio"

    num_layers: int = 24
    num_heads: int = 24
    head_dim: int = 64
    """Dh, a multiple of 4."""
    num_memory_heads: int = 12
    """Key and value heads of cross-attention."""
    memory_dim: int = 768
    """Width of what cross-attention reads."""
    condition_dim: int = 768
    """E, the width of conditions before two layers take them to that of the memory."""
    num_time_features: int = 256
    """Sines and cosines that stand for the time."""

    def __post_init__(self) -> None:
        if self.head_dim % 4:
            raise UserError(
                f"head_dim {self.head_dim} must be a multiple of 4: half of it is rotated in pairs"
            )
        if self.num_heads % self.num_memory_heads:
            raise UserError(
                f"num_heads {self.num_heads} must be a multiple of num_memory_heads {self.num_memory_heads}"
            )
        numbers = [condition.name for condition in self.conditions if condition.kind == "number"]
        others = [condition.name for condition in self.conditions if condition.fuse != "cross"]
        if tuple(numbers) != TIMINGS or others:
            raise UserError(
                f"Stable Audio is told the numbers {' and '.join(TIMINGS)}, and all by cross-attention;"
                f" conditions are {self.conditions.names}"
            )

    @property
    def dim(self) -> int:
        """W."""
        return self.num_heads * self.head_dim

    @property
    def block_shape(self) -> BlockShape:
        """What each block is made of."""
        return BlockShape(
            dim=self.dim,
            num_heads=self.num_heads,
            hidden_dim=4 * self.dim,
            memory_dim=self.memory_dim,
            num_memory_heads=self.num_memory_heads,
            modulated=False,
            qk_norm=False,
            bias=True,
        )


class RandomTimeEmbedding(TimeEmbedding):
    """The same with frequencies that were drawn once (arXiv:2006.10739) and are not trained."""

    def __init__(self, dim: int, num_features: int) -> None:
        super().__init__(dim, num_features)
        self.register_buffer("frequencies", torch.randn(num_features // 2))
        self.frequencies: Tensor

    def features(self, time: Tensor) -> Tensor:
        """[B] float32 in 0…1 to sines and cosines [B, num_features]."""
        angles = 2 * torch.pi * time[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class StableAudio(Network):
    """Stable Audio Open's network; its target is v (arXiv:2202.00512) at σ/α = tan(π/2 time)."""

    config_class = StableAudioConfig
    config: StableAudioConfig
    whole_clips = True

    def __init__(self, config: StableAudioConfig) -> None:
        super().__init__()
        self.config = config
        dim, memory_dim = config.dim, config.memory_dim
        self.conditioner = Conditioner(config.conditions, config.condition_dim)
        self.time = RandomTimeEmbedding(dim, config.num_time_features)
        self.timing = _two_layers(len(TIMINGS) * config.condition_dim, dim)
        self.memory = _two_layers(config.condition_dim, memory_dim)
        self.mix_in = nn.Conv1d(config.in_dim, config.in_dim, 1, bias=False)
        self.embed = nn.Linear(config.in_dim, dim, bias=False)
        self.blocks = nn.ModuleList(Block(config.block_shape) for _ in range(config.num_layers))
        self.head = nn.Linear(dim, config.latent_dim, bias=False)
        self.mix_out = nn.Conv1d(config.latent_dim, config.latent_dim, 1, bias=False)
        for layer in (self.mix_in, self.head, self.mix_out):
            nn.init.zeros_(layer.weight)

    def use_attention(self, backend: Backend) -> None:
        """Compute self-attention with `backend` where it runs on the network's device; else a line says why
        not."""
        self.backend = usable_backend(backend, self.device, self.config.head_dim)

    def condition(self, given: GivenConditions, batch_size: int, *, keep_keys: bool = False) -> Conditioned:
        """See `Network`; but timings enter the first token also where they are hidden.

        As published: guidance hides them, like the prompt, from cross-attention alone. Timings that are not
        given are 0 there.
        """
        fused = self.conditioner(given, batch_size)
        zeros = self.time.frequencies.new_zeros(batch_size, 1)
        timings = [
            self.conditioner.numbers[name](given[name].values if name in given else zeros) for name in TIMINGS
        ]
        assert fused.memory is not None
        memory = self.memory(fused.memory)
        conditioned = Conditioned(
            self.timing(torch.cat(timings, dim=1)), memory=memory, memory_mask=fused.memory_mask
        )
        if keep_keys:
            conditioned.keys_values = [b.memory_keys_values(memory) for b in blocks_in(self.blocks)]
        return conditioned

    def predict(
        self, x: Tensor, time: Tensor, conditioned: Conditioned, *, mask: Tensor | None = None
    ) -> Tensor:
        """See `Network`."""
        self._check_length(x.shape[2])
        assert conditioned.added is not None
        first = (self.time(time) + conditioned.added)[:, None]
        x = (self.mix_in(x) + x).transpose(1, 2)
        h = torch.cat([first, self.embed(x)], dim=1)  # [B, 1 + T, W]
        around = Surroundings(
            self._rotary(h.shape[1], h.device),
            None if mask is None else SeenKeys(F.pad(mask, (1, 0), value=True)),
            memory=conditioned.memory,
            memory_mask=conditioned.memory_mask,
            backend=self.backend,
        )
        known: Sequence[KeysValues | None] = conditioned.keys_values or [None] * len(self.blocks)
        for block, keys_values in zip(self.blocks, known, strict=True):
            h = block(h, around, keys_values)
        y = self.head(h[:, 1:]).transpose(1, 2)
        return self.mix_out(y) + y  # type: ignore[no-any-return]

    def _rotary(self, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Half of each head is rotated; the other pairs turn by angles of 0: two of [1 + T, 1, Dh/2]."""
        head_dim = self.config.head_dim
        cos, sin = rotary_tables(torch.arange(num_tokens, device=device), head_dim // 2)
        still = (0, head_dim // 2 - cos.shape[1])
        return F.pad(cos, still, value=1.0)[:, None], F.pad(sin, still)[:, None]

    def clip_flops(self, num_frames: int, num_states: Mapping[str, int]) -> float:
        """See `Network`."""
        config, dim, width = self.config, self.config.dim, self.config.condition_dim
        states = {c.name: num_states.get(c.name, 1) for c in config.conditions}
        num_memory = sum(states.values())
        blocks = config.num_layers * block_flops(config.block_shape, 1 + num_frames, num_memory)
        mixed = 4 * config.in_dim**2 + 6 * config.latent_dim**2
        ends = num_frames * (mixed + 6 * (config.in_dim + config.latent_dim) * dim)
        first = 6 * dim * (2 * width + 2 * dim) + 4 * dim * config.num_time_features
        memory = 6 * num_memory * config.memory_dim * (width + config.memory_dim)
        numbers = [c.width + 1 for c in config.conditions if c.kind == "number"]  # they enter twice
        told = told_flops(config.conditions, num_states, width) + 6 * width * sum(numbers)
        return blocks + ends + first + memory + told


def _two_layers(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_in, num_out, bias=False), nn.SiLU(), nn.Linear(num_out, num_out, bias=False)
    )
