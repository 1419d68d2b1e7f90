"""A diffusion model: a network, what it was trained to predict, and which latents it makes.

Latents are those of the codec outside, and have mean 0 and standard deviation 1 inside.

Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from huggingface_hub import ModelCard
from torch import Tensor
from torch.utils._pytree import register_dataclass

from ..core.conditions import Conditions, GivenConditions
from ..core.errors import UserError
from ..core.saved_model import CONFIG_NAME, SavedModel
from ..tokenize.codec import CodecInfo
from .build import network_class
from .networks.network import NetworkConfig
from .objective import Objective, make_objective

KIND = "diffusion"
"""What `config.json` calls such a model."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """All that a diffusion model is made from."""

    network: NetworkConfig
    objective: Objective
    codec: Mapping[str, Any] = field(default_factory=dict)
    """The content of `codec.json`: which codec turns the latents into audio, their mean and deviation."""
    mask_conditions: bool = False
    """Whether the network sees latents that are known, and where they are, beside the noisy ones."""

    def __post_init__(self) -> None:
        dim = self.network.latent_dim
        expected = 2 * dim + 1 if self.mask_conditions else dim
        if self.network.in_dim != expected:
            raise UserError(f"the network takes {self.network.in_dim} numbers a frame, not {expected}")
        if self.codec and self.codec["latent_dim"] != dim:
            raise UserError(
                f"latents have {dim} numbers a frame for the model, {self.codec['latent_dim']} for its codec"
            )

    @property
    def conditions(self) -> Conditions:
        """What the model is told about a clip."""
        return self.network.conditions

    @property
    def codec_info(self) -> CodecInfo:
        """The codec whose latents these are; raises `UserError` where the model does not say."""
        if not self.codec:
            raise UserError(f"this model's {CONFIG_NAME} does not say which codec its latents are of")
        return CodecInfo.from_json(self.codec, f"the codec in the model's {CONFIG_NAME}")

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.codec_info.frame_rate

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": KIND,
            "network": self.network.to_dict(),
            "objective": self.objective.to_dict(),
            "codec": dict(self.codec),
            "mask_conditions": self.mask_conditions,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`; raises `UserError` for what is no diffusion model."""
        known = {"kind", *(f.name for f in dataclasses.fields(cls))}
        if values.keys() != known or values["kind"] != KIND:
            raise UserError(
                f"this is not the {CONFIG_NAME} of a diffusion model: it says {sorted(values)}, not"
                f" {sorted(known)}"
            )
        return cls(
            network=network_class(values["network"].get("kind")).config_class.from_dict(values["network"]),
            objective=make_objective(values["objective"]),
            codec=values["codec"],
            mask_conditions=values["mask_conditions"],
        )


@dataclass
class DiffusionLoss:
    """Squared distance from the target."""

    mean: Tensor  # scalar: over all frames that count, and the D dimensions
    num_frames: Tensor  # scalar int64: how many those are


# Wrappers such as FSDP look for tensors in what a module returns; they look into registered classes only.
register_dataclass(DiffusionLoss, field_names=["mean", "num_frames"])


class DiffusionModel(SavedModel):
    """A network with its objective; `forward` is the training loss."""

    config_class = DiffusionConfig
    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.objective = config.objective
        self.network = network_class(config.network.kind)(config.network)
        dim = config.network.latent_dim
        mean, std = config.codec.get("latent_mean"), config.codec.get("latent_std")
        self.register_buffer("latent_mean", torch.zeros(dim) if mean is None else torch.tensor(mean).float())
        self.register_buffer("latent_std", torch.ones(dim) if std is None else torch.tensor(std).float())
        self.latent_mean: Tensor
        self.latent_std: Tensor
        # A dimension that never changes has nothing to be divided by.
        self.latent_std.masked_fill_(self.latent_std == 0, 1.0)

    @property
    def blocks(self) -> Any:
        """The network's, for checkpointing and compiling."""
        return self.network.blocks

    def normalise(self, latents: Tensor) -> Tensor:
        """The codec's latents [B, D, T] with mean 0 and deviation 1."""
        return (latents - self.latent_mean[:, None]) / self.latent_std[:, None]

    def denormalise(self, latents: Tensor) -> Tensor:
        """Undo `normalise`."""
        return latents * self.latent_std[:, None] + self.latent_mean[:, None]

    def inputs(self, x: Tensor, known: Tensor | None = None, latents: Tensor | None = None) -> Tensor:
        """What the network sees of noisy latents x [B, D, T].

        With mask conditions it sees `latents` where `known` [B, T] is True, zeros elsewhere, and `known`.
        """
        if not self.config.mask_conditions:
            return x
        if known is None or latents is None:
            return torch.cat([x, torch.zeros_like(x), torch.zeros_like(x[:, :1])], dim=1)
        where = known[:, None].to(x.dtype)
        return torch.cat([x, latents * where, where], dim=1)

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        time: Tensor,
        given: GivenConditions | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
    ) -> DiffusionLoss:
        """The loss of the codec's latents [B, D, T] with `noise` [B, D, T] at `time` [B].

        Frames that are False in `mask` [B, T] are neither seen nor counted. Those that are True in `known`
        [B, T] are told to a network with mask conditions, and not counted.
        """
        x0 = self.normalise(latents)
        x = self.objective.add_noise(x0, noise, time)
        output = self.network(self.inputs(x, known, x0), time, given or {}, mask=mask)
        error = (output.float() - self.objective.target(x0, noise, time)).square().mean(1)
        counted = torch.ones_like(error, dtype=torch.bool) if mask is None else mask
        if known is not None:
            counted = counted & ~known
        num_frames = counted.sum()
        return DiffusionLoss((error * counted).sum() / num_frames.clamp(min=1), num_frames)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card of the bare facts, for a folder or repository that has none."""
        config = self.config
        return ModelCard(
            "---\nlibrary_name: tokkata\npipeline_tag: text-to-audio\ntags: [music-generation, diffusion]\n"
            f"---\n# A {config.network.kind} over latents, objective {config.objective.kind}\n\n"
            f"{sum(p.numel() for p in self.parameters()):,} parameters;"
            f" conditions: {', '.join(config.conditions.names) or 'none'}.\n"
        )
