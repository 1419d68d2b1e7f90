"""The model card of an adversarial model: what it is, what it was trained on, and how good it is."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..core.card import MODEL, SCORES_HEADING, condition_line, example_options
from ..core.conditions import Condition, Conditions
from ..core.files import write_text
from ..core.recipe import dump_recipe
from ..core.schema import Recipe
from ..tokenize.origin import ORIGIN, as_markdown, origins_of, read_origins
from .gan_model import GanConfig, GanModel


def write_card(path: Path, recipe: Recipe, model: GanModel, validation: dict[str, float]) -> None:
    """Write a model card for the Hub: codec, data and its licence, conditions, training, validation, use.

    The stage `eval` adds its scores at `SCORES_HEADING`.
    """
    config, codec = model.config, model.config.codec
    section, any_length = config.section, model.generator.has_any_length
    num_parameters = sum(p.numel() for p in model.parameters())
    rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in validation.items())
    scores = f"| | |\n|---|---|\n{rows}" if rows else "There was no held-out clip to validate on.\n"
    tokens = recipe.folder / "tokens"
    origins = read_origins(tokens) if (tokens / ORIGIN).exists() else origins_of(recipe.data)
    conditions = "".join(map(_line, config.conditions)) or "None: it is told nothing.\n"
    length_s = recipe.generate.duration_s
    duration_s = length_s if any_length else min(length_s, config.duration_s)
    frames = round(duration_s * codec["frame_rate"])
    options = [*example_options(config.conditions), *_number_options(config.conditions)]
    command = ["tokkata", "generate", MODEL, "--num", "4", "--duration", f"{duration_s:g}", *options]
    makes = "latents" if section.uses_codec else "samples"
    image = section.model_dump()["representation"]["kind"]
    text = f"""---
library_name: tokkata
pipeline_tag: text-to-audio
tags: [music-generation, gan, tokkata]
---
# {recipe.name}

A generative adversarial network (`{section.kind}`) that makes the {makes} of the codec `{codec["id"]}`, \
trained with Tokkata.

| | |
|---|---|
| parameters | {num_parameters:,}, of the generator alone |
| settings | {_settings(config)} |
| image | {" × ".join(map(str, model.shape.of()))}, {image} |
| codec | `{codec["id"]}`, revision {codec["revision"] or "not pinned"}: {codec["sample_rate"]} Hz, \
{codec["frame_rate"]:g} frames/s of {codec["latent_dim"]} numbers |
| training | {recipe.train.steps} steps of the discriminator with {recipe.train.batch_size} clips of \
{recipe.train.crop_s:g} s |

## Data
{"".join(map(as_markdown, origins))}
## Conditions
{conditions}{_MISSING if len(config.conditions) else ""}
## Validation
How the clips that it makes of held-out clips' conditions compare with these: see `gan/collapse.py`.

{scores}
{SCORES_HEADING}
Not evaluated yet.

## Use
```sh
{shlex.join(command)}
{shlex.join(["tokkata", "interpolate", MODEL, "--from", "0", "--to", "1", *options])}
```
```python
from tokkata.gan.generate import generate
from tokkata.gan.load import codec_of, load_gan

model = load_gan("{MODEL}")
latents = generate(model, num_frames={frames}, seed=0)
audio = codec_of(model).decode_latents(latents)
```

## Limits
{_limits(config, any_length)}
## Recipe
```yaml
{dump_recipe(recipe)}```
"""
    write_text(path, text)


_MISSING = """
It was always told all of them. What is not said is that of a training clip: some are described in
`config.json`, of which the seed draws one.
"""


def _line(condition: Condition) -> str:
    if condition.kind == "sequence":
        return f"- `{condition.name}`: one of {condition.width} tokens for each frame of the spectrogram\n"
    return condition_line(condition)


def _number_options(conditions: Conditions) -> list[str]:
    """Options of `tokkata generate` that tell the first number, as an example."""
    numbers = [condition for condition in conditions if condition.kind == "number"]
    return ["--label", f"{numbers[0].name}={0.8 * (numbers[0].maximum or 1):g}"] if numbers else []


def _settings(config: GanConfig) -> str:
    left_out = ("kind", "conditions", "collapse", "representation", "encoder", "teacher")
    told = config.section.model_dump(mode="json", exclude=set(left_out), exclude_none=True)
    return ", ".join(f"{name} {_value(value)}" for name, value in told.items())


def _value(value: object) -> str:
    return (
        " ".join(f"{v}" if k == "kind" else f"{k} {v}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
    )


def _limits(config: GanConfig, any_length: bool) -> str:
    length = (
        f"It was trained on clips of {config.duration_s:g} s. In longer ones it has never heard what comes"
        " later belong to what came before."
        if any_length
        else f"Its clips last {config.duration_s:g} s; shorter ones are their beginnings."
    )
    lines = [
        length,
        f"It makes {config.codec['channels']} channel{'s' if config.codec['channels'] > 1 else ''} at"
        f" {config.codec['sample_rate']} Hz.",
        "Adversarial training leaves things out: sounds that the corpus has may never be made.",
        "It may repeat what it was trained on; the report of its run says what was found of that.",
    ]
    return "".join(f"- {line}\n" for line in lines)
