"""Small networks of diffusion whose weights are large enough for every part of them to matter.

Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokkata.core.conditions import Condition, Conditions, GivenConditions
from tokkata.diffusion.networks.dit import DiT, DiTConfig
from tokkata.diffusion.networks.network import Network
from tokkata.diffusion.networks.unet import UNet1d, UNet1dConfig

D, MAX_FRAMES = 4, 24

WITHOUT_PREPENDED = Conditions(
    (
        Condition("pitch", "label", values=(60, 62, 64)),
        Condition("mood", "tags", values=("calm", "glad")),
        Condition("start", "number", width=4, maximum=60.0),
        Condition("style", "sequence", width=4),
        Condition("player", "label", "cross", values=("ann", "bob")),
        Condition("total", "number", "cross", width=6, maximum=60.0),
        Condition("text", "sequence", "cross", width=6),
    )
)
EVERYTHING = Conditions(
    (
        *WITHOUT_PREPENDED,
        Condition("form", "label", "prepend", values=("chord", "note")),
        Condition("melody", "sequence", "prepend", width=3),
    )
)
"""One condition of every kind, in the ways in which each enters."""

NETWORKS: dict[str, dict[str, Any]] = {
    "dit": {},
    "patches": {"patch_size": 3},
    "registers": {"num_registers": 2, "patch_size": 2},
    "no-qk-norm": {"qk_norm": False},
    "unet": {"channels": (8, 12, 16)},
    "flat-unet": {"channels": (16,), "num_blocks": 2},
}


def tiny(
    name: str = "dit", *, conditions: Conditions | None = None, in_dim: int = D, seed: int = 0
) -> Network:
    """A network in evaluation mode with random weights everywhere, also where untrained ones have zeros."""
    torch.manual_seed(seed)
    shape = {"latent_dim": D, "in_dim": in_dim, "max_frames": MAX_FRAMES, "num_heads": 2} | NETWORKS[name]
    network: Network
    if "channels" in shape:
        network = UNet1d(
            UNet1dConfig(conditions=WITHOUT_PREPENDED if conditions is None else conditions, **shape)
        )
    else:
        shape = {"dim": 16, "num_layers": 2} | shape
        network = DiT(DiTConfig(conditions=EVERYTHING if conditions is None else conditions, **shape))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    return network.eval()


def inputs(num_frames: int, batch_size: int = 3, in_dim: int = D, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noisy latents [B, D_in, T] and times [B]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch_size, in_dim, num_frames, generator=generator)
    return x, torch.rand(batch_size, generator=generator)


def some_of(conditions: Conditions, seed: int = 2) -> GivenConditions:
    """What three clips may be given: all, some, and almost nothing."""
    generator = torch.Generator().manual_seed(seed)

    def states(length: int, width: int) -> Tensor:
        return torch.randn(length, width, generator=generator)

    told = {
        "pitch": [60, 64, None],
        "mood": [("calm",), None, ("calm", "glad")],
        "start": [2.5, None, 50],
        "style": [states(1, 4), states(3, 4), None],
        "player": ["bob", None, "ann"],
        "total": [60, None, 7.5],
        "text": [states(4, 6), None, states(2, 6)],
        "form": ["note", None, "chord"],
        "melody": [states(2, 3), states(5, 3), None],
    }
    return conditions.encode({name: told[name] for name in conditions.names})
