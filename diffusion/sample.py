"""Stage `generate`: wav files from a trained diffusion model.

python -m tokkata.diffusion.sample RECIPE

samples/
  00000.wav …  samples.jsonl     one line a clip: labels, seed, length
  untrained/                     the same from random weights, as a baseline for the scores
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..core.device import best_device
from ..core.errors import UserError
from ..core.files import atomic_folder
from ..core.run import stage_main
from ..core.schema import Recipe
from ..core.schema_generate import DiffusionGenerate
from ..tokenize.codec import Codec, load_codec_from_info
from ..tokenize.fast_codec import fast
from ..tokenize.features.clip_conditions import ClipConditions
from ..tokenize.store import TokenStore
from .clips import Clips, write_clips
from .diffusion_model import DiffusionModel
from .generate import Settings
from .load import load_diffusion


def sample(recipe: Recipe) -> None:
    """Write `samples/`."""
    config = recipe.generate
    assert isinstance(config, DiffusionGenerate)
    device = best_device()
    store = TokenStore(recipe.folder / "tokens")
    codec = fast(load_codec_from_info(store.info, device))
    model = load_diffusion(recipe.folder / "model", device=device)
    clips = choose_clips(store, model, config)
    models = [("samples", "generate", model)]
    if config.untrained_baseline:
        torch.manual_seed(recipe.train.seed)
        models.append(("untrained", "baseline", DiffusionModel(model.config).to(device).eval()))
    with atomic_folder(recipe.folder / "samples") as partial:
        for name, title, one in models:
            write_samples(partial if name == "samples" else partial / name, one, codec, clips, config, title)


def write_samples(
    folder: Path, model: DiffusionModel, codec: Codec, clips: Clips, config: DiffusionGenerate, title: str
) -> None:
    """Generate the clips as `config` says, and write the wavs and `samples.jsonl`."""
    write_clips(
        folder,
        model,
        codec,
        clips,
        Settings(config.steps, config.sampler, config.cfg_scale, config.cfg_interval, config.cfg_rescale),
        seed=config.seed,
        batch_size=config.batch_size,
        overlap_s=config.overlap_s,
        title=title,
    )


def choose_clips(store: TokenStore, model: DiffusionModel, config: DiffusionGenerate) -> Clips:
    """As many clips as the recipe asks for, with conditions of real ones, taken in turn.

    Those with a label value that the model has never met are passed over. Raises `UserError` if none is left.
    """
    split = store.split(config.labels_from)
    if not len(split):
        raise UserError(
            f"generate.labels_from: the split '{split.name}' has no clips; name another, or hold out more"
        )
    num_frames = round(config.duration_s * store.info.frame_rate)
    real = ClipConditions(store, split, model.config.conditions, num_frames)
    usable = real.known(np.random.default_rng(config.seed).permutation(len(split)).tolist())
    if not usable:
        raise UserError(
            f"no clip of the split '{split.name}' has labels that the model knows: choose another"
            " generate.labels_from"
        )
    chosen = [usable[n % len(usable)] for n in range(config.num_clips)]
    ids = split.column("id")
    notes = [{"labels": real.labels(clip), "source_id": str(ids[clip]), "prompt_s": 0.0} for clip in chosen]
    return Clips(notes, config.duration_s, real.given([(clip, 0) for clip in chosen]))


if __name__ == "__main__":
    stage_main("generate", sample)
