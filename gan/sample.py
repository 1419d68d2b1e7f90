"""Stage `generate`: wav files from a trained adversarial model.

python -m tokkata.gan.sample RECIPE

samples/
  00000.wav …  samples.jsonl     one line a clip: labels, seed, length
  untrained/                     the same from random weights, as a baseline for the scores
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..core.conditions import GivenConditions, join, select
from ..core.device import best_device
from ..core.errors import UserError
from ..core.files import atomic_folder
from ..core.run import stage_main
from ..core.schema import Recipe
from ..core.schema_generate import GanGenerate
from ..tokenize.codec import load_codec_from_info
from ..tokenize.fast_codec import fast
from ..tokenize.store import TokenStore
from .clips import Clips, write_clips
from .conditions.examples import all_lengthened
from .conditions.told import ClipTold
from .gan_model import GanModel
from .generate import image_frames
from .load import load_gan

_AT_ONCE = 16  # real clips that are read at once for what is to be told of them


def sample(recipe: Recipe) -> None:
    """Write `samples/`."""
    config = recipe.generate
    assert isinstance(config, GanGenerate)
    device = best_device()
    store = TokenStore(recipe.folder / "tokens")
    codec = fast(load_codec_from_info(store.info, device))
    model = load_gan(recipe.folder / "model", device=device)
    clips = choose_clips(store, model, config, recipe.folder)
    models = [("samples", "generate", model)]
    if config.untrained_baseline:
        torch.manual_seed(recipe.train.seed)
        models.append(("untrained", "baseline", model.untrained()))
    with atomic_folder(recipe.folder / "samples") as partial:
        for name, title, one in models:
            write_clips(
                partial if name == "samples" else partial / name,
                one,
                codec,
                clips,
                seed=config.seed,
                batch_size=config.batch_size,
                title=title,
            )


def choose_clips(store: TokenStore, model: GanModel, config: GanGenerate, run: Path) -> Clips:
    """As many clips as the recipe asks for, with conditions of real ones, taken in turn.

    Those with a label value that the model has never met are passed over. Raises `UserError` if none is left.
    Where clips are longer than in training, so are the real clips whose tokens they follow. `run` is where
    the stage `prepare` has written.
    """
    split = store.split(config.labels_from)
    if not len(split):
        raise UserError(
            f"generate.labels_from: the split '{split.name}' has no clips; name another, or hold out more"
        )
    num_frames = round(config.duration_s * store.info.frame_rate)
    longer = model.generator.has_any_length and num_frames > model.config.num_frames
    read = dataclasses.replace(model.config, num_frames=num_frames) if longer else model.config
    real = ClipTold(store, split, read, run)
    usable = real.known(np.random.default_rng(config.seed).permutation(len(split)).tolist())[
        : config.num_clips
    ]
    if not usable:
        raise UserError(
            f"no clip of the split '{split.name}' has labels that the model knows: choose another"
            " generate.labels_from"
        )
    ids = split.column("id")
    notes, given = [], []
    for first in range(0, len(usable), _AT_ONCE):
        crops = [(clip, 0) for clip in usable[first : first + _AT_ONCE]]
        _, told = real.read(crops)
        if longer:
            lengths = [int(split.num_frames[clip]) for clip, _ in crops]
            told = _as_long(told, model, lengths, num_frames)
        given.append(told)
        notes += [
            {"labels": words, "source_id": str(ids[clip])}
            for (clip, _), words in zip(crops, real.said(crops, told), strict=True)
        ]
    turns = torch.arange(config.num_clips) % len(usable)
    return Clips([notes[turn] for turn in turns.tolist()], config.duration_s, select(join(*given), turns))


def _as_long(
    told: GivenConditions, model: GanModel, lengths: Sequence[int], num_frames: int
) -> GivenConditions:
    """What clips of `num_frames` frames are told, from real clips of these lengths: sequences of shorter ones
    are drawn out."""
    conditions, frames = model.config.conditions, image_frames(model, num_frames)
    rows = [
        all_lengthened(
            conditions,
            select(told, slice(row, row + 1)),
            frames,
            of=image_frames(model, min(length, num_frames)),
        )
        for row, length in enumerate(lengths)
    ]
    return join(*rows)


if __name__ == "__main__":
    stage_main("generate", sample)
