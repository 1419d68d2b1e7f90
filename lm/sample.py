"""Stage `generate`: wav files from a trained language model.

    python -m tokkata.lm.sample RECIPE

    samples/
      00000.wav …  samples.jsonl     one line a clip: labels, seed, length
      untrained/                     the same from random weights, as a baseline for the scores

Shapes: B batch, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from ..tokenize.store import TokenSplit, TokenStore
from .generate import generate
from .transformer import TransformerLM


@dataclass(frozen=True)
class Request:
    """One clip to generate."""

    labels: Mapping[str, Label]
    source_id: str
    """The real clip that lends its labels, and its beginning where there is a prompt."""
    prompt: np.ndarray | None  # [K, T0]


def sample(recipe: Recipe) -> None:
    """Write `samples/`."""
    config = recipe.generate
    device = best_device()
    store = TokenStore(recipe.folder / "tokens")
    codec = load_codec_from_info(store.info, device)
    lm = TransformerLM.from_pretrained(recipe.folder / "model").to(device)
    requests = choose_requests(store.split(config.labels_from), lm, config)
    with atomic_folder(recipe.folder / "samples") as partial:
        write_samples(partial, lm, codec, requests, config, "generate")
        if config.untrained_baseline:
            torch.manual_seed(recipe.train.seed)
            untrained = TransformerLM(lm.config).to(device).eval()
            write_samples(partial / "untrained", untrained, codec, requests, config, "baseline")


def choose_requests(split: TokenSplit, lm: TransformerLM, config: Generate) -> list[Request]:
    """As many requests as the recipe asks for, with labels of real clips, taken in turn.

    Clips with a label value that the model has never met are passed over. Raises `UserError` if none is left.
    """
    if not len(split):
        raise UserError(
            f"generate.labels_from: the split '{split.name}' has no clips; name another, or hold out more"
        )
    vocabulary = lm.config.vocabulary
    columns = {name: split.column(name) for name in vocabulary.names}
    ids = split.column("id")
    num_prompt = round(config.prompt_s * lm.config.frame_rate)
    usable = [
        i
        for i in np.random.default_rng(config.seed).permutation(len(split))
        if all(columns[name][i] in known for name, known in vocabulary.values.items())
        and split.num_frames[i] >= num_prompt
    ]
    if not usable:
        raise UserError(
            f"no clip of the split '{split.name}' has labels that the model knows and lasts"
            f" {config.prompt_s:g} s: choose another generate.labels_from or prompt_s"
        )
    return [
        Request(
            labels={name: columns[name][i] for name in vocabulary.names},
            source_id=str(ids[i]),
            prompt=split.codes(i, 0, num_prompt) if num_prompt else None,
        )
        for i in (usable[n % len(usable)] for n in range(config.num_clips))
    ]


def write_samples(
    folder: Path, lm: TransformerLM, codec: Codec, requests: Sequence[Request], config: Generate, title: str
) -> None:
    """Generate one clip for each request, in batches, and write the wavs and `samples.jsonl`."""
    folder.mkdir(exist_ok=True)
    num_samples = round(config.duration_s * codec.sample_rate)
    lines = []
    with progress_bar() as bar:
        task = bar.add_task(title, total=len(requests))
        for first in range(0, len(requests), config.batch_size):
            batch = requests[first : first + config.batch_size]
            codes = generate_batch(lm, codec.num_frames(num_samples), batch, config, first)
            # One clip at a time: a batch of long clips does not fit a cache or a small GPU.
            for i, (request, clip) in enumerate(zip(batch, codes, strict=True), start=first):
                audio = codec.decode(clip[None], num_samples=num_samples)[0]
                name = f"{i:05d}.wav"
                write_wav(folder / name, audio.cpu().numpy(), codec.sample_rate)
                lines.append(
                    {
                        "file": name,
                        "labels": dict(request.labels),
                        "seed": config.seed,
                        "row": i,
                        "source_id": request.source_id,
                        "prompt_s": config.prompt_s,
                        "num_frames": clip.shape[-1],
                        "duration_s": config.duration_s,
                    }
                )
                bar.advance(task)
    write_jsonl(folder / "samples.jsonl", lines)


def generate_batch(
    lm: TransformerLM, num_frames: int, batch: Sequence[Request], config: Generate, first: int
) -> Tensor:
    """Codes `[B, K, T]` for some requests, the first of which is number `first` of the whole set."""
    names = lm.config.vocabulary.names
    prompts = [request.prompt for request in batch if request.prompt is not None]
    return generate(
        lm,
        num_frames,
        batch_size=len(batch),
        labels={name: [request.labels[name] for request in batch] for name in names} if names else None,
        prompt=torch.from_numpy(np.stack(prompts)) if prompts else None,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        cfg_scale=config.cfg_scale,
        seed=config.seed,
        row_offset=first,
    )


if __name__ == "__main__":
    stage_main("generate", sample)
