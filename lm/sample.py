"""Stage `generate`: wav files from a trained language model.

    python -m tokkata.lm.sample RECIPE

    samples/
      00000.wav …  samples.jsonl     one line a clip: labels, seed, length
      untrained/                     the same from random weights, as a baseline for the scores

Shapes: B batch, K codebooks, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import GivenConditions
from ..core.device import best_device
from ..core.errors import UserError
from ..core.files import atomic_folder
from ..core.label import Label
from ..core.run import stage_main
from ..core.schema import Generate, Recipe
from ..tokenize.codec import Codec, load_codec_from_info
from ..tokenize.store import TokenStore
from .batches import TokenBatches
from .clips import Clips, write_clips
from .generate import Generator
from .language_model import LanguageModel
from .load import load_lm
from .sampling import Sampling
from .step_models.input_noise import assume_noise


@dataclass(frozen=True)
class Requests:
    """The clips to generate: what the model is told of each, and what each begins with."""

    given: GivenConditions
    labels: list[dict[str, Label]]
    """The same for people, as far as it can be said in words and numbers."""
    source_ids: list[str]
    """The real clips that lend their conditions, and their beginnings where there are prompts."""
    prompt: Tensor | None  # [B, K, T0]

    def __len__(self) -> int:
        return len(self.source_ids)


def sample(recipe: Recipe) -> None:
    """Write `samples/`."""
    config = recipe.generate
    assert isinstance(config, Generate)
    device = best_device()
    store = TokenStore(recipe.folder / "tokens")
    codec = load_codec_from_info(store.info, device)
    lm = load_lm(recipe.folder / "model", device=device)
    requests = choose_requests(store, lm, config)
    with atomic_folder(recipe.folder / "samples") as partial:
        write_samples(partial, lm, codec, requests, config, "generate")
        if config.untrained_baseline:
            torch.manual_seed(recipe.train.seed)
            untrained = type(lm)(lm.config).to(device).eval()
            write_samples(partial / "untrained", untrained, codec, requests, config, "baseline")


def choose_requests(store: TokenStore, lm: LanguageModel, config: Generate) -> Requests:
    """As many requests as the recipe asks for, with conditions of real clips, taken in turn.

    Clips with a label value that the model has never met are passed over. Raises `UserError` if none is left.
    """
    split = store.split(config.labels_from)
    if not len(split):
        raise UserError(
            f"generate.labels_from: the split '{split.name}' has no clips; name another, or hold out more"
        )
    num_frames = round(config.duration_s * lm.config.frame_rate)
    batches = TokenBatches(store, split, lm.config.conditions, num_frames)
    num_prompt = round(config.prompt_s * lm.config.frame_rate)
    known = batches.known(np.random.default_rng(config.seed).permutation(len(split)).tolist())
    usable = [clip for clip in known if split.num_frames[clip] >= num_prompt]
    if not usable:
        raise UserError(
            f"no clip of the split '{split.name}' has labels that the model knows and lasts"
            f" {config.prompt_s:g} s: choose another generate.labels_from or prompt_s"
        )
    clips = [usable[n % len(usable)] for n in range(config.num_clips)]
    ids = split.column("id")
    prompts = [torch.from_numpy(split.codes(clip, 0, num_prompt)) for clip in clips]
    return Requests(
        given=batches.given([(clip, 0) for clip in clips]),
        labels=[batches.labels(clip) for clip in clips],
        source_ids=[str(ids[clip]) for clip in clips],
        prompt=torch.stack(prompts) if num_prompt else None,
    )


def write_samples(
    folder: Path, lm: LanguageModel, codec: Codec, requests: Requests, config: Generate, title: str
) -> None:
    """Generate one clip for each request, in batches, and write the wavs and `samples.jsonl`."""
    notes = [
        {"labels": labels, "source_id": source_id, "prompt_s": config.prompt_s}
        for labels, source_id in zip(requests.labels, requests.source_ids, strict=True)
    ]
    if config.assumed_noise is not None:
        assume_noise(lm, config.assumed_noise)
    write_clips(
        folder,
        Generator(lm, weights=config.weights),
        codec,
        Clips(notes, config.duration_s, requests.given, requests.prompt),
        Sampling(config.temperature, config.top_k, config.top_p, config.cfg_scale),
        seed=config.seed,
        batch_size=config.batch_size,
        overlap_s=config.overlap_s,
        title=title,
    )


if __name__ == "__main__":
    stage_main("generate", sample)
