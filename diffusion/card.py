"""The model card of a diffusion model: what it is, what it was trained on, and how good it is."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from ..core.card import MODEL, SCORES_HEADING, condition_line, example_options
from ..core.files import write_text
from ..core.recipe import dump_recipe
from ..core.schema import Recipe
from ..tokenize.origin import ORIGIN, as_markdown, origins_of, read_origins
from .diffusion_model import DiffusionConfig, DiffusionModel
from .objective import Consistency


def write_card(path: Path, recipe: Recipe, model: DiffusionModel, validation: dict[str, float]) -> None:
    """Write a model card for the Hub: codec, data and its licence, conditions, training, validation, use.

    The stage `eval` adds its scores at `SCORES_HEADING`.
    """
    config, codec = model.config, model.config.codec
    num_parameters = sum(p.numel() for p in model.parameters())
    rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in validation.items())
    scores = f"| | |\n|---|---|\n{rows}" if rows else "There was no held-out clip to validate on.\n"
    tokens = recipe.folder / "tokens"
    origins = read_origins(tokens) if (tokens / ORIGIN).exists() else origins_of(recipe.data)
    conditions = "".join(map(condition_line, config.conditions)) or "None: it is told nothing.\n"
    duration_s = min(recipe.generate.duration_s, config.network.max_frames / config.frame_rate)
    validated = "Mean squared distance from the objective's target"
    if isinstance(config.objective, Consistency):
        validated = "Root mean square distance between two jumps from one path to its end"
    options = example_options(config.conditions)
    command = ["tokkata", "generate", MODEL, "--num", "4", "--duration", f"{duration_s:g}", *options]
    text = f"""---
library_name: tokkata
pipeline_tag: text-to-audio
tags: [music-generation, diffusion, tokkata]
---
# {recipe.name}

A diffusion model (network `{config.network.kind}`, objective `{config.objective.kind}`) over the latents of \
the codec `{codec["id"]}`, trained with Tokkata.

| | |
|---|---|
| parameters | {num_parameters:,} |
| network | {_settings(config)} |
| objective | {", ".join(f"{name} {value}" for name, value in config.objective.to_dict().items())} |
| codec | `{codec["id"]}`, revision {codec["revision"] or "not pinned"}: {codec["sample_rate"]} Hz, \
{codec["frame_rate"]:g} frames/s of {codec["latent_dim"]} numbers |
| training | {recipe.train.steps} steps of {recipe.train.batch_size} clips of {recipe.train.crop_s:g} s |

## Data
{"".join(map(as_markdown, origins))}
## Conditions
{conditions}
## Validation
{validated} on held-out clips, over all times and at each.

{scores}
{SCORES_HEADING}
Not evaluated yet.

## Use
```sh
{shlex.join(command)}
```
```python
from tokkata.diffusion.generate import generate
from tokkata.diffusion.load import codec_of, load_diffusion

model = load_diffusion("{MODEL}")
latents = generate(model, num_frames={round(duration_s * config.frame_rate)}, seed=0)
audio = codec_of(model).decode_latents(latents)
```

## Limits
- It was trained on clips of {config.network.max_frames / config.frame_rate:g} s. Longer ones are made of \
overlapping windows, and nothing holds them together beyond that.
- It sounds at best as its codec does.
- It may repeat what it was trained on; the report of its run says what was found of that.

## Recipe
```yaml
{dump_recipe(recipe)}```
"""
    write_text(path, text)


def _settings(config: DiffusionConfig) -> str:
    left_out = ("conditions", "latent_dim", "in_dim")
    told = {f.name: getattr(config.network, f.name) for f in dataclasses.fields(config.network)}
    return ", ".join(
        f"{name} {list(value) if isinstance(value, tuple) else value}"
        for name, value in told.items()
        if name not in left_out and value is not None
    )
