"""What every network of a diffusion model is: noisy latents, a time and conditions in, a prediction out.

Conditions become vectors once a sample, by `condition`; the many steps of a sampler call `predict` with what
came out of it. `forward` does both.

Shapes: B batch, D latent width, D_in width of the input (D, or 2 D + 1 beside known latents and their mask),
T frames, W model width, P prepended tokens, M states of the memory, E their width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.attention import Backend
from ...core.conditions import Conditions, GivenConditions
from ...core.model_config import ModelConfig

INIT_STD = 0.02

KeysValues = tuple[Tensor, Tensor]
"""Of a memory, in one layer."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ModelConfig):
    """What decides the shape of a network and what it is told."""

    latent_dim: int
    """D."""
    in_dim: int
    """D_in."""
    max_frames: int
    """The longest clip that it was made for, in frames."""


@dataclass
class Conditioned:
    """What conditions have become; None where no condition enters in that way."""

    added: Tensor | None = None  # [B, W], part of the global vector
    prefix: Tensor | None = None  # [B, P, W], tokens before the first frame
    prefix_mask: Tensor | None = None  # [B, P] bool, False where a token is not seen; None: all are
    memory: Tensor | None = None  # [B, M, E], attended to by cross-attention
    memory_mask: Tensor | None = None  # [B, M] bool; None: all are attended to
    keys_values: list[KeysValues] = field(default_factory=list)
    """Of the memory, for each layer that attends to it, [B, H_kv, M, Dh]; empty: layers make them anew."""


class Network(nn.Module, ABC):
    """Predicts what its objective asks for (noise, velocity, …) from noisy latents."""

    config_class: ClassVar[type[NetworkConfig]]
    config: NetworkConfig
    backend: Backend = "sdpa"
    whole_clips: ClassVar[bool] = False
    """Whether it knows clips of `max_frames` alone, with silence after shorter ones: such are sampled, and
    cut."""

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.config.latent_dim

    @property
    def max_frames(self) -> int:
        """The longest clip that it was made for, in frames."""
        return self.config.max_frames

    def forward(
        self, x: Tensor, time: Tensor, given: GivenConditions, *, mask: Tensor | None = None
    ) -> Tensor:
        """Inputs [B, D_in, T] at `time` [B] float32 in 0…1, where 1 is noise alone, to [B, D, T].

        Conditions that are not given are hidden. Frames that are False in `mask` [B, T] are not seen, and
        what comes out there means nothing: a clip has the prediction that it has alone and not padded.
        Raises `ValueError` for more than `max_frames` frames.
        """
        return self.predict(x, time, self.condition(given, x.shape[0]), mask=mask)

    @abstractmethod
    def condition(self, given: GivenConditions, batch_size: int, *, keep_keys: bool = False) -> Conditioned:
        """What the conditions of `batch_size` clips become; with `keep_keys`, the memory's keys too.

        Keeping those is for sampling: steps need not compute them again. It calls into blocks from outside,
        which a model that is sharded by FSDP does not allow.
        """

    @abstractmethod
    def predict(
        self, x: Tensor, time: Tensor, conditioned: Conditioned, *, mask: Tensor | None = None
    ) -> Tensor:
        """`forward` with conditions that `condition` has been through."""

    @abstractmethod
    def clip_flops(self, num_frames: int, num_states: Mapping[str, int]) -> float:
        """Floating-point operations of the forward and backward pass over one clip of `num_frames` frames.

        Matrix products and convolutions alone count, as in PaLM (arXiv:2204.02311, appendix B).
        `num_states` is how many vectors a clip has of each sequence among the conditions.
        """

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def _check_length(self, num_frames: int) -> None:
        if num_frames > self.max_frames:
            raise ValueError(f"{num_frames} frames are more than the {self.max_frames} of this network")


def told_flops(conditions: Conditions, num_states: Mapping[str, int], dim: int) -> float:
    """Of taking the conditions of a clip to vectors of width `dim`, as `Network.clip_flops` counts.

    Four operations a weight, because what it is multiplied with is data and needs no gradient; six for
    numbers, whose frequencies do.
    """
    total = 0
    for condition in conditions:
        if condition.kind == "number":
            total += 6 * (condition.width + 1)
        elif condition.kind == "tags":
            total += 4 * condition.num_rows
        elif condition.kind == "sequence" and condition.project:
            total += 4 * condition.width * num_states[condition.name]
    return float(dim * total)


# DiT (arXiv:2212.09748) embeds the steps 0…1000 of a DDPM so: sines and cosines as in arXiv:1706.03762.
class TimeEmbedding(nn.Module):
    """Fourier features of the time, then a network of one hidden layer."""

    def __init__(self, dim: int, num_features: int = 256) -> None:
        super().__init__()
        self.num_features = num_features
        self.hidden = nn.Linear(num_features, dim)
        self.out = nn.Linear(dim, dim)

    def features(self, time: Tensor) -> Tensor:
        """[B] float32 in 0…1 to sines and cosines [B, num_features]."""
        half = self.num_features // 2
        frequencies = 1000 * 10000 ** -(torch.arange(half, device=time.device) / half)
        angles = time[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, time: Tensor) -> Tensor:
        """[B] float32 in 0…1 to [B, W]."""
        features = self.features(time.float()).to(self.hidden.weight.dtype)
        y: Tensor = self.out(nn.functional.silu(self.hidden(features)))
        return y
