"""The card of a trained codec: what it is, how to load it, what it was trained on, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.card import MODEL, SCORES_HEADING
from ...core.files import write_text
from ...core.recipe import dump_recipe
from ...core.saved_model import CONFIG_NAME, read_config
from ...core.schema import MelVaeModel, Recipe
from ..codec import Codec, load_codec
from ..origin import as_markdown, origins_of

CARD_NAME = "README.md"

_LIBRARIES = {
    "DacModel": "transformers",
    "EncodecModel": "transformers",
    "AutoencoderOobleck": "diffusers",
}
"""Classes whose `from_pretrained` reads a codec of ours, and the library of each."""


def write_card(
    folder: Path,
    recipe: Recipe,
    validation: dict[str, float],
    *,
    base: str | None = None,
    bandwidth_kbps: float | None = None,
) -> None:
    """Write `README.md` beside the codec that was saved in `folder`, which is loaded to describe it.

    The stage `eval` adds its scores at `SCORES_HEADING`; `push` puts the repository's name for `MODEL`.

    Args:
        folder: has the codec in the hub's layout.
        validation: the last validation's figures; may be empty.
        base: the codec that training began from, if it did not begin with random weights.
        bandwidth_kbps: the one that it is described at, for codecs that have several.

    Raises `UserError` if the codec cannot be loaded.
    """
    codec = load_codec(str(folder), bandwidth_kbps=bandwidth_kbps)
    name = class_name(read_config(folder / CONFIG_NAME))
    library = _LIBRARIES.get(name or "")
    rows = "".join(f"| {key} | {value:.4f} |\n" for key, value in validation.items())
    is_on_hub = base is not None and not Path(base).exists()
    loading = "" if bandwidth_kbps is None else f", bandwidth_kbps={bandwidth_kbps:g}"
    other = f"\nAlso `{library}.{name}.from_pretrained(...)` reads it.\n" if library else ""
    text = f"""---
library_name: {library or "tokkata"}
pipeline_tag: audio-to-audio
tags: [audio-codec, tokkata]
{f"base_model: {base}{chr(10)}" if is_on_hub else ""}---
# {recipe.name}

{_what(codec, recipe)}, {f"fine-tuned from `{base}`" if base else "trained"} with Tokkata.

| | |
|---|---|
| parameters | {sum(p.numel() for p in codec.parameters()):,} |
| audio | {codec.sample_rate} Hz, {codec.channels} channel{"s" if codec.channels > 1 else ""} |
| frames | {codec.frame_rate:g} a second, of {codec.hop_length} samples |
| {_contents(codec)} |
| training | {recipe.train.steps} steps of {recipe.train.batch_size} clips of {recipe.train.crop_s:g} s |

## Data
{"".join(map(as_markdown, origins_of(recipe.data)))}{_inherited(base)}
## Validation
On held-out crops, at the end of training.

{f"| | |{chr(10)}|---|---|{chr(10)}{rows}" if rows else f"There was no held-out clip.{chr(10)}"}
{SCORES_HEADING}
Not evaluated yet.

## Use
```python
from tokkata.tokenize.codec import load_codec

codec = load_codec("{MODEL}"{loading})
{_use(codec)}
```
{other}
## Limits
- It hears nothing above {codec.sample_rate // 2} Hz.
- Sounds that are unlike its training data come back changed.

## Recipe
```yaml
{dump_recipe(recipe)}```
"""
    write_text(folder / CARD_NAME, text)


def write_mel_vae_card(folder: Path, recipe: Recipe, validation: dict[str, float]) -> None:
    """Write `README.md` beside the mel-frame VAE in `folder`, which no codec is: it has notes, no frames.

    `validation` are the last validation's figures, or empty. `push` puts the repository's name for `MODEL`.
    """
    model = recipe.model
    assert isinstance(model, MelVaeModel)
    rows = "".join(f"| {key} | {value:.4f} |\n" for key, value in validation.items())
    text = f"""---
library_name: tokkata
tags: [variational-autoencoder, tokkata]
---
# {recipe.name}

A variational autoencoder of single notes, trained with Tokkata: {model.latent_dim} numbers for the log-mel
spectrogram of {recipe.train.crop_s:g} s at {model.sample_rate_hz} Hz, heard through Griffin-Lim.

## Data
{"".join(map(as_markdown, origins_of(recipe.data)))}
## Validation
On held-out notes, at the end of training; `loss` is the mean squared error of standardised log-mels.

{f"| | |{chr(10)}|---|---|{chr(10)}{rows}" if rows else f"There was no held-out note.{chr(10)}"}
## Use
```
tokkata codec sample {MODEL} --num 8 --out notes
```

## Limits
- Spectrograms are smoother than those of real notes, and the phase is guessed.

## Recipe
```yaml
{dump_recipe(recipe)}```
"""
    write_text(folder / CARD_NAME, text)


def class_name(config: Mapping[str, Any]) -> str | None:
    """The class that saved a model, as its configuration says."""
    name: str | None = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    return name


def _what(codec: Codec, recipe: Recipe) -> str:
    if codec.num_codebooks:
        return f"A neural audio codec of kind `{recipe.model.kind}`, with residual vector quantisation"
    return f"A variational autoencoder of audio, of kind `{recipe.model.kind}`"


def _contents(codec: Codec) -> str:
    """What a frame holds, as a row of the table."""
    if codec.num_codebooks:
        kbps = codec.info.bitrate_kbps
        return f"codes | {codec.num_codebooks} codebooks of {codec.codebook_size}, {kbps:.2f} kbit/s"
    return f"latents | {codec.latent_dim} numbers a frame, {codec.latent_dim * codec.frame_rate:g} a second"


def _use(codec: Codec) -> str:
    shape = f"# audio [B, {codec.channels}, N] at {codec.sample_rate} Hz, -1…1"
    if codec.num_codebooks:
        return (
            f"codes = codec.encode(audio)  {shape}\n"
            f"audio = codec.decode(codes)  # [B, {codec.num_codebooks}, T]"
        )
    return (
        f"latents = codec.encode_latents(audio)  {shape}\n"
        f"audio = codec.decode_latents(latents)  # [B, {codec.latent_dim}, T]"
    )


def _inherited(base: str | None) -> str:
    if base is None:
        return ""
    return f"- What `{base}` was trained on before. Its licence binds what is made from it.\n"
