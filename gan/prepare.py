"""Stage `prepare` of an adversarial model that is told what another network hears.

    python -m tokkata.gan.prepare RECIPE

A DarkGAN's teacher writes soft labels (`conditions/teacher.py`), a VQCPC-GAN's encoder tokens
(`conditions/vqcpc.py`); both of every clip of every split, so that later stages only look them up
(`conditions/prepared.py`).
"""

from __future__ import annotations

from ..core.run import stage_main
from ..core.schema import Recipe
from ..core.schema_gan import DarkGanModel
from .conditions import teacher, vqcpc


def prepare(recipe: Recipe) -> None:
    """Write `teacher/` or `encoder/`."""
    if isinstance(recipe.model, DarkGanModel):
        teacher.prepare_teacher(recipe)
    else:
        vqcpc.prepare_encoder(recipe)


if __name__ == "__main__":
    stage_main("prepare", prepare)
