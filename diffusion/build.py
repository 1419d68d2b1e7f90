"""The networks that a diffusion model can have, and a new one as a recipe asks for it.

A network is: a section of the schema, a class, and a line in `NETWORKS`.
"""

from __future__ import annotations

from ..core.conditions import Conditions
from ..core.errors import UserError
from ..core.schema_diffusion import DitModel, NetworkSection, UNetModel
from .networks.dit import DiT
from .networks.network import Network, NetworkConfig
from .networks.unet import UNet1d
from .stable_audio.network import StableAudio

NETWORKS: dict[str, type[Network]] = {one.config_class.kind: one for one in (DiT, UNet1d, StableAudio)}
"""By their kinds."""


def network_class(kind: str | None) -> type[Network]:
    """Raises `UserError` for a kind that is not known."""
    if kind not in NETWORKS:
        raise UserError(f"unknown network {kind!r} of a diffusion model: known are {', '.join(NETWORKS)}")
    return NETWORKS[kind]


def network_config(
    model: DitModel | UNetModel, latent_dim: int, max_frames: int, conditions: Conditions
) -> NetworkConfig:
    """The network that a recipe asks for, for clips of up to `max_frames` frames."""
    shape = model.model_dump(exclude={"kind", "attention", *NetworkSection.model_fields})
    lists = {name: tuple(value) for name, value in shape.items() if isinstance(value, list)}
    config_class = network_class(model.kind).config_class
    return config_class(
        latent_dim=latent_dim,
        in_dim=2 * latent_dim + 1 if model.mask_conditions else latent_dim,
        max_frames=max_frames,
        conditions=conditions,
        **{**shape, **lists},
    )
