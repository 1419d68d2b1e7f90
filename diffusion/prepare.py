"""Stage `prepare` of a diffusion model that is trained from audio: the corpus as one array of samples.

python -m tokkata.diffusion.prepare RECIPE
"""

from __future__ import annotations

import sys

from ..core.run import stage_main
from ..core.schema import Recipe
from ..tokenize.load_corpus import load_corpus
from ..tokenize.store import TokenStore
from ..tokenize.training.audio_store import write_audio_store


def prepare(recipe: Recipe) -> None:
    """Write `audio/`, as the codec takes it."""
    info, folder = TokenStore(recipe.folder / "tokens").info, recipe.folder / "audio"
    corpus = load_corpus(recipe.data)
    num_rejected = write_audio_store(folder, corpus, info.sample_rate, recipe.audio, info.channels)
    if num_rejected:
        print(f"{num_rejected} clips rejected, listed in {folder / 'rejects.jsonl'}", file=sys.stderr)


if __name__ == "__main__":
    stage_main("prepare", prepare)
