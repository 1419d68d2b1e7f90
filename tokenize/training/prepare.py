"""Stage `prepare` of a codec's run: the corpus as one array of samples.

python -m tokkata.tokenize.training.prepare RECIPE
"""

from __future__ import annotations

import sys

from ...core.run import stage_main
from ...core.schema import Recipe, TrainedCodec, VaeModel
from ..load_corpus import load_corpus
from .audio_store import write_audio_store


def prepare(recipe: Recipe) -> None:
    """Write `audio/`."""
    assert isinstance(recipe.model, TrainedCodec)
    model = recipe.model
    write_audio(recipe, model.sample_rate_hz, model.channels if isinstance(model, VaeModel) else 1)


def write_audio(recipe: Recipe, sample_rate: int, channels: int) -> None:
    """Write `audio/` at this rate, with so many channels; says how many clips were rejected."""
    folder = recipe.folder / "audio"
    corpus = load_corpus(recipe.data)
    num_rejected = write_audio_store(folder, corpus, sample_rate, recipe.audio, channels)
    if num_rejected:
        print(f"{num_rejected} clips rejected, listed in {folder / 'rejects.jsonl'}", file=sys.stderr)


if __name__ == "__main__":
    stage_main("prepare", prepare)
