"""The section `generate` of a recipe: what language models, diffusion models and
adversarial models are asked; part of `schema.py`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .sections import NOT_BOOL, OPERATIONAL, Fraction, Integer, PositiveFloat, PositiveInt, Section, Split


class GenerateSection(Section):
    """Sampling from the trained model, of any family."""

    num_clips: PositiveInt = 64
    """Number of clips."""
    duration_s: PositiveFloat = 2.0
    """Length of each clip in seconds."""
    labels_from: Split = "test"
    """Split whose clips lend their labels, so that what is asked for is distributed like real audio."""
    batch_size: PositiveInt = 32
    """Clips generated at once."""
    seed: Integer = 0
    """Seed of the sampling."""
    untrained_baseline: bool = True
    """Also sample from the same architecture with random weights, as a baseline for the scores."""


class Generate(GenerateSection):
    """Sampling from a language model."""

    kind: Literal["tokens"] = Field(default="tokens", exclude=True, json_schema_extra=OPERATIONAL)
    """Follows from the model's kind, and need not be given."""
    cfg_scale: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1.0
    """Classifier-free guidance; 1 is none, and costs half."""
    temperature: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1.0
    """Softmax temperature; 0 always takes the likeliest token."""
    top_k: PositiveInt | None = 250
    """Sample among this many likeliest tokens; null: no such limit."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0), NOT_BOOL] | None = None
    """Sample among the likeliest tokens that together have this probability; null: no such limit."""
    prompt_s: Annotated[float, Field(ge=0.0), NOT_BOOL] = 0.0
    """Seconds of a real clip (of `labels_from`) that each generated clip continues; 0: none."""
    overlap_s: PositiveFloat | None = None
    """Clips longer than `train.crop_s` are generated in windows of that length, each of which begins with
    this much of the one before; null: two fifths of it."""
    weights: Literal["fp32", "bf16", "int8"] = "fp32"
    """Number format of the weights that generation reads: bf16 and int8 are faster, and round."""
    assumed_noise: Annotated[float, Field(ge=0.0), NOT_BOOL] | None = None
    """For models with `tell_noise`: how noisy (in classes) a model takes its own samples to be. The more, the
    less of its errors it goes on with, and the less of what is fine. null: half of `input_noise`."""


Sampler = Literal["ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "euler", "heun", "consistency"]

SAMPLERS: dict[str, tuple[Sampler, ...]] = {
    "ddpm": ("dpm++2m", "dpm++2m-sde", "ddim", "ddpm"),
    "v": ("dpm++2m", "dpm++2m-sde", "ddim", "ddpm"),
    "edm": ("heun", "dpm++2m", "dpm++2m-sde", "ddim"),
    "flow": ("euler", "heun", "dpm++2m", "dpm++2m-sde"),
    "consistency": ("consistency",),
}
"""By kind of objective: the samplers that can be used, the usual one first."""


class DiffusionGenerate(GenerateSection):
    """Sampling from a diffusion model."""

    kind: Literal["latents"] = Field(default="latents", exclude=True, json_schema_extra=OPERATIONAL)
    """Follows from the model's kind, and need not be given."""
    steps: PositiveInt = 50
    """Steps from noise to latents."""
    sampler: Sampler | None = None
    """How a step is done; null: euler for a flow, heun for EDM, consistency for what was distilled, dpm++2m
    for the others."""
    cfg_scale: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1.0
    """Classifier-free guidance; 1 is none, and costs half."""
    cfg_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Times between which there is guidance, 1 being noise alone (arXiv:2404.07724)."""
    cfg_rescale: Fraction = 0.0
    """How much of guidance's growth of the standard deviation is taken back (arXiv:2305.08891, sec. 3.4)."""
    overlap_s: PositiveFloat | None = None
    """Clips longer than `train.crop_s` are made of windows of that length that share this many seconds with
    their neighbours; null: longer clips are refused."""

    prompt_s: ClassVar[float] = 0.0
    """Diffusion models go on from a recording by `mask_conditions`, on the command line."""

    @model_validator(mode="after")
    def _check_interval(self) -> Self:
        if self.cfg_interval[0] >= self.cfg_interval[1]:
            raise ValueError(f"cfg_interval {list(self.cfg_interval)} must begin before it ends")
        return self


class GanGenerate(GenerateSection):
    """Sampling from an adversarial model, which makes a clip in one step."""

    kind: Literal["images"] = Field(default="images", exclude=True, json_schema_extra=OPERATIONAL)
    """Follows from the model's kind, and need not be given."""

    prompt_s: ClassVar[float] = 0.0
    """Adversarial models do not go on from a recording."""


Family = Literal["tokens", "latents", "images"]
"""What a model makes, by which its section `generate` is chosen."""

_SECTIONS: dict[Family, type[GenerateSection]] = {
    "tokens": Generate,
    "latents": DiffusionGenerate,
    "images": GanGenerate,
}
_NAMES: dict[Family, str] = {
    "tokens": "language models",
    "latents": "diffusion models",
    "images": "adversarial models",
}


def refuse_other_family(given: dict[str, object], kind: Family, model: str) -> None:
    """Raise `ValueError` for a setting of `generate` that models of other families have."""
    own = _SECTIONS[kind].model_fields
    for name in given:
        others = [_NAMES[other] for other, section in _SECTIONS.items() if name in section.model_fields]
        if name not in own and others:
            only = own.keys() - GenerateSection.model_fields.keys() - {"kind"} or own.keys() - {"kind"}
            raise ValueError(
                f"generate.{name} is a setting of {' and '.join(others)}, and '{model}' is not one:"
                f" {_NAMES[kind]} have {', '.join(sorted(only))}"
            )
