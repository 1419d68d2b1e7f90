"""The model card: what a model is, what it was trained on, and how good it is, as far as that is known."""

from __future__ import annotations

from pathlib import Path

from ..core.card import SCORES_HEADING
from ..core.files import write_text
from ..core.recipe import dump_recipe
from ..core.schema import Recipe
from .transformer import TransformerLM


def write_card(path: Path, recipe: Recipe, lm: TransformerLM, validation: dict[str, float]) -> None:
    """Write a model card for the Hub: codec, data, steps, validation and recipe.

    The stage `eval` adds its scores at `SCORES_HEADING`.
    """
    config, codec = lm.config, lm.config.codec
    num_parameters = sum(p.numel() for p in lm.parameters())
    rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in validation.items())
    scores = f"| | |\n|---|---|\n{rows}" if rows else "There was no held-out clip to validate on.\n"
    labels = ", ".join(f"`{name}`" for name in config.conditions.names) or "none"
    text = f"""---
library_name: tokkata
pipeline_tag: text-to-audio
tags: [music-generation, tokkata]
---
# {recipe.name}

A Transformer language model over the tokens of the codec `{codec["id"]}`, trained with Tokkata.

| | |
|---|---|
| parameters | {num_parameters:,} |
| architecture | layers {config.num_layers}, width {config.dim}, heads {config.num_heads}, \
codebook pattern {config.pattern} |
| codec | `{codec["id"]}`, revision {codec["revision"] or "not pinned"}: {codec["sample_rate"]} Hz, \
{config.frame_rate:g} frames/s, {config.num_codebooks} codebooks of {config.codebook_size} |
| data | corpus of kind `{recipe.data.kind}` |
| conditions | {labels} |
| training | {recipe.train.steps} steps of {recipe.train.batch_size} clips of {recipe.train.crop_s:g} s |

## Validation
Cross-entropy in nats a token, on held-out clips; `loss` is the mean over all codebooks.

{scores}
{SCORES_HEADING}
Not evaluated yet.

## Use
```python
from tokkata.lm.transformer import TransformerLM
from tokkata.lm.generate import generate

lm = TransformerLM.from_pretrained("path or hub id of this folder")
codes = generate(lm, num_frames={round(recipe.generate.duration_s * config.frame_rate)}, seed=0)
```

## Recipe
```yaml
{dump_recipe(recipe)}```
"""
    write_text(path, text)
