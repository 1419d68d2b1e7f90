"""The list `tokenize.features` of a recipe: what is stored beside a clip's tokens for models to be told."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from .sections import PositiveFloat, PositiveInt, Section

FeatureName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class TextFeature(Section):
    """What a text encoder makes of a caption or another text column."""

    kind: Literal["text"]
    name: FeatureName = "text"
    """What models and readers call it; two features of a kind need names of their own."""
    encoder: str
    """A T5 (`google-t5/t5-base`), of which all tokens' last hidden states are stored, or a CLAP
    (`laion/larger_clap_music`), of which the sentence's vector is: a hub id or a folder in the hub's
    layout."""
    revision: str | None = None
    """Commit or tag on the Hub."""
    column: str = "caption"
    """Where the text is: `caption`, or a label column that holds text. A clip without any has a feature of
    no length, which models take for hidden."""
    max_tokens: PositiveInt = 128
    """Longer texts are cut to this many tokens, the end token counted."""
    store: Literal["float16", "float32"] = "float16"
    """Number format on disk; float16 halves it."""


class MelodyFeature(Section):
    """Which of the twelve pitch classes is loudest, 7.8 times a second, as MusicGen's melody model hears it
    (arXiv:2306.05284, sec. 2.3), of the whole mix: no source separation comes before."""

    kind: Literal["melody"]
    name: FeatureName = "melody"
    """What models and readers call it; two features of a kind need names of their own."""


class StyleFeature(Section):
    """One vector for the whole clip's sound."""

    kind: Literal["style"]
    name: FeatureName = "style"
    """What models and readers call it; two features of a kind need names of their own."""
    encoder: str
    """A CLAP's audio tower (its windows' mean vector), or any codec that `load_codec` takes, such as `pocket`
    (the mean of its latents): a hub id, a folder in the hub's layout, or a codec's name."""
    revision: str | None = None
    """Commit or tag on the Hub."""
    bandwidth_kbps: PositiveFloat | None = None
    """For a codec with several bandwidths, one of them: it cannot be loaded without, though its latents do
    not depend on it."""


Feature = Annotated[TextFeature | MelodyFeature | StyleFeature, Field(discriminator="kind")]


def _check_names(features: list[Feature]) -> list[Feature]:
    for name, count in Counter(feature.name for feature in features).items():
        if count > 1:
            raise ValueError(f"{count} features have the name '{name}': give each a `name` of its own")
    return features


Features = Annotated[list[Feature], AfterValidator(_check_names)]
