"""Stage `prepare` of a codec's run: the corpus as one array of samples.

python -m tokkata.tokenize.prepare RECIPE
"""

from __future__ import annotations

import sys

from ..core.run import stage_main
from ..core.schema import DacModel, Recipe
from .audio_store import write_audio_store
from .load_corpus import load_corpus


def prepare(recipe: Recipe) -> None:
    """Write `audio/`."""
    assert isinstance(recipe.model, DacModel)
    folder = recipe.folder / "audio"
    num_rejected = write_audio_store(folder, load_corpus(recipe.data), recipe.model.sample_rate_hz)
    if num_rejected:
        print(f"{num_rejected} clips rejected, listed in {folder / 'rejects.jsonl'}", file=sys.stderr)


if __name__ == "__main__":
    stage_main("prepare", prepare)
