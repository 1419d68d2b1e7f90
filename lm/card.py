"""The model card: what a model is, what it was trained on, and how good it is, as far as that is known."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from ..core.card import MODEL, SCORES_HEADING, condition_line, example_options
from ..core.files import write_text
from ..core.recipe import dump_recipe
from ..core.schema import Recipe
from ..core.schema_models import TransformerModel
from ..tokenize.origin import ORIGIN, as_markdown, origins_of, read_origins
from .language_model import LanguageModel, LMConfig


def write_card(path: Path, recipe: Recipe, lm: LanguageModel, validation: dict[str, float]) -> None:
    """Write a model card for the Hub: codec, data and its licence, conditions, training, validation, use.

    The stage `eval` adds its scores at `SCORES_HEADING`; `publish.py` puts the repository's name for `MODEL`.
    """
    config, codec = lm.config, lm.config.codec
    num_parameters = sum(p.numel() for p in lm.parameters())
    rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in validation.items())
    scores = f"| | |\n|---|---|\n{rows}" if rows else "There was no held-out clip to validate on.\n"
    tokens = recipe.folder / "tokens"
    origins = read_origins(tokens) if (tokens / ORIGIN).exists() else origins_of(recipe.data)
    conditions = "".join(map(condition_line, config.conditions)) or "None: it is told nothing.\n"
    duration_s = recipe.generate.duration_s
    base = _base(recipe)
    is_on_hub = base is not None and not Path(base).exists()
    text = f"""---
library_name: tokkata
pipeline_tag: text-to-audio
tags: [music-generation, tokkata]
{f"base_model: {base}{chr(10)}" if is_on_hub else ""}---
# {recipe.name}

A language model of kind `{config.kind}` over the tokens of the codec `{codec["id"]}`, \
{f"fine-tuned from `{base}`" if base else "trained"} with Tokkata.

| | |
|---|---|
| parameters | {num_parameters:,} |
| architecture | {_architecture(config)} |
| codec | `{codec["id"]}`, revision {codec["revision"] or "not pinned"}: {codec["sample_rate"]} Hz, \
{config.frame_rate:g} frames/s, {config.num_codebooks} codebooks of {config.codebook_size} |
| training | {recipe.train.steps} steps of {recipe.train.batch_size} clips of {recipe.train.crop_s:g} s\
{_how(recipe)} |

## Data
{"".join(map(as_markdown, origins))}{_inherited_line(base)}
## Conditions
{conditions}
## Validation
Cross-entropy in nats a token, on held-out clips; `loss` is the mean over all codebooks.

{scores}
{SCORES_HEADING}
Not evaluated yet.

## Use
```sh
{_command(config, duration_s)}
```
```python
from tokkata.lm.generate import generate
from tokkata.lm.load import codec_of, load_lm

lm = load_lm("{MODEL}")
codes = generate(lm, num_frames={round(duration_s * config.frame_rate)}, seed=0)
audio = codec_of(lm).decode(codes)
```

## Limits
{_limits(config)}
## Recipe
```yaml
{dump_recipe(recipe)}```
"""
    write_text(path, text)


def _base(recipe: Recipe) -> str | None:
    """The model that training began from, if it did not begin with random weights."""
    return recipe.model.init_from if isinstance(recipe.model, TransformerModel) else None


def _how(recipe: Recipe) -> str:
    """What a fine-tuning trained."""
    model = recipe.model
    if not isinstance(model, TransformerModel) or model.init_from is None:
        return ""
    if model.lora is None:
        return ", all weights"
    return f", low-rank adapters of rank {model.lora.rank}, merged into the weights"


def _inherited_line(base: str | None) -> str:
    if base is None:
        return ""
    return f"- What `{base}` was trained on before. Its licence binds what is made from it.\n"


def _architecture(config: LMConfig) -> str:
    """What the family adds to the settings that all models have."""
    shared = {field.name for field in dataclasses.fields(LMConfig)}
    told = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return ", ".join(
        f"{name} {list(value) if isinstance(value, tuple) else value}"
        for name, value in told.items()
        if name not in shared and value is not None
    )


def _command(config: LMConfig, duration_s: float) -> str:
    """How to generate with every condition told, each by its first value."""
    words = ["tokkata", "generate", MODEL, "--num", "4", "--duration", f"{duration_s:g}"]
    words += example_options(config.conditions)
    return shlex.join(words)


def _limits(config: LMConfig) -> str:
    lines = []
    if config.window_frames is not None:
        lines.append(
            f"Its window is {config.window_frames / config.frame_rate:g} s. Longer clips are generated window"
            " after window, and nothing holds them together beyond that."
        )
    if any(condition.values for condition in config.conditions):
        lines.append("It knows the values above alone. What it is not told is left to chance.")
    lines += [
        f"It sounds at best as its codec does: {config.codec['sample_rate']} Hz,"
        f" {config.num_codebooks} codebooks.",
        "It may repeat what it was trained on; the report of its run says what was found of that.",
    ]
    return "".join(f"- {line}\n" for line in lines)
