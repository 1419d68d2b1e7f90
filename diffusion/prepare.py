"""Stage `prepare` of a diffusion model that is trained from audio: the corpus as one array of samples.

python -m tokkata.diffusion.prepare RECIPE
"""

from __future__ import annotations

from ..core.run import stage_main
from ..core.schema import Recipe
from ..tokenize.store import TokenStore
from ..tokenize.training.prepare import write_audio


def prepare(recipe: Recipe) -> None:
    """Write `audio/`, as the codec takes it."""
    info = TokenStore(recipe.folder / "tokens").info
    write_audio(recipe, info.sample_rate, info.channels)


if __name__ == "__main__":
    stage_main("prepare", prepare)
