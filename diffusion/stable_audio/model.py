"""Stable Audio Open as a model that generates and trains like any other.

model = stable_audio_model("stabilityai/stable-audio-open-1.0")
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...tokenize.codec import load_codec
from ..diffusion_model import DiffusionConfig, DiffusionModel
from ..objective import Velocity
from .files import load_stable_audio


def stable_audio_model(source: str | Path, *, revision: str | None = None) -> DiffusionModel:
    """A Stable Audio in evaluation mode, from a hub id or a folder in the hub's layout.

    Its latents are those of the codec as they are. It is sampled as published: v-prediction at noise levels
    that fall exponentially between those that the pipeline's scheduler says.

    Raises `UserError` as `load_stable_audio` and `load_codec` do, and for a scheduler of another kind.
    """
    loaded = load_stable_audio(source, revision=revision)
    config = DiffusionConfig(
        network=loaded.network.config,
        objective=_objective(source, loaded.scheduler),
        codec=dataclasses.asdict(load_codec(str(source), revision=revision).info),
    )
    model = DiffusionModel(config)
    model.network = loaded.network
    return model.eval()


def _objective(source: str | Path, scheduler: dict[str, Any]) -> Velocity:
    wanted = {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_schedule": "exponential"}
    for name, value in wanted.items():
        if scheduler.get(name, value) != value:
            raise UserError(
                f"{source}: its scheduler has {name} {scheduler[name]!r}, but only {value!r} can be sampled"
            )
    return Velocity(sigma_min=scheduler.get("sigma_min", 0.3), sigma_max=scheduler.get("sigma_max", 500.0))
