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

from ..core.audio import write_wav
from ..core.device import best_device
from ..core.errors import UserError
from ..core.files import atomic_folder, write_jsonl
from ..core.progress import progress_bar
from ..core.run import stage_main
from ..core.schema import Generate, Recipe
from ..tokenize.codec import Codec, load_codec_from_info
from ..tokenize.corpus import Label
from ..tokenize.store import TokenStore
from .batches import TokenBatches
from .conditions import GivenConditions, select
from .generate import Generator
from .language_model import LanguageModel
from .sampling import Sampling
from .transformer import TransformerLM


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
    device = best_device()
    store = TokenStore(recipe.folder / "tokens")
    codec = load_codec_from_info(store.info, device)
    lm = TransformerLM.from_pretrained(recipe.folder / "model").to(device)
    requests = choose_requests(store, lm, config)
    with atomic_folder(recipe.folder / "samples") as partial:
        write_samples(partial, lm, codec, requests, config, "generate")
        if config.untrained_baseline:
            torch.manual_seed(recipe.train.seed)
            untrained = TransformerLM(lm.config).to(device).eval()
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
    folder.mkdir(exist_ok=True)
    num_samples = round(config.duration_s * codec.sample_rate)
    generator = Generator(lm, weights=config.weights)
    lines = []
    with progress_bar() as bar:
        task = bar.add_task(title, total=len(requests))
        for first in range(0, len(requests), config.batch_size):
            rows = slice(first, min(first + config.batch_size, len(requests)))
            codes = generate_rows(generator, codec.num_frames(num_samples), requests, rows, config)
            # One clip at a time: a batch of long clips does not fit a cache or a small GPU.
            for i, clip in enumerate(codes, start=first):
                audio = codec.decode(clip[None], num_samples=num_samples)[0]
                name = f"{i:05d}.wav"
                write_wav(folder / name, audio.cpu().numpy(), codec.sample_rate)
                lines.append(
                    {
                        "file": name,
                        "labels": requests.labels[i],
                        "seed": config.seed,
                        "row": i,
                        "source_id": requests.source_ids[i],
                        "prompt_s": config.prompt_s,
                        "num_frames": clip.shape[-1],
                        "duration_s": config.duration_s,
                    }
                )
                bar.advance(task)
    write_jsonl(folder / "samples.jsonl", lines)


def generate_rows(
    generator: Generator, num_frames: int, requests: Requests, rows: slice, config: Generate
) -> Tensor:
    """Codes `[B, K, T]` for some of the requests."""
    overlap = None if config.overlap_s is None else round(config.overlap_s * generator.config.frame_rate)
    return generator.generate(
        num_frames,
        batch_size=rows.stop - rows.start,
        conditions=select(requests.given, rows),
        prompt=None if requests.prompt is None else requests.prompt[rows],
        sampling=Sampling(config.temperature, config.top_k, config.top_p, config.cfg_scale),
        seed=config.seed,
        first_clip=rows.start,
        overlap_frames=overlap,
    )


if __name__ == "__main__":
    stage_main("generate", sample)
