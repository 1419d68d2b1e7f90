"""The stages of a run: their order, their programs, what decides their output and where it goes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .schema import Recipe, TrainedCodec
from .schema_diffusion import ConsistencyModel, DiffusionSection, TrainedSection
from .schema_gan import DarkGanModel, GanSection, VqcpcGanModel

SAMPLE_CODES = "codes.safetensors"
"""Beside generated clips: their tokens, codes [K, T] under each file's name."""


@dataclass(frozen=True)
class Stage:
    """One step from audio to scores."""

    name: str
    module: str
    """What `python -m` or `accelerate launch -m` starts."""
    function: str
    """The function of that module which does the work, given the recipe."""
    sections: tuple[str, ...]
    """The sections or single settings of a recipe that decide its output, dotted."""
    outputs: tuple[str, ...]
    """The folders of the run that it writes."""
    after: str | None = None
    """The stage whose output it reads."""


TOKEN_MODEL_STAGES = (
    Stage(
        "tokenize", "tokkata.tokenize.encode", "tokenize", ("data", "audio", "codec", "tokenize"), ("tokens",)
    ),
    Stage(
        "train",
        "tokkata.lm.train",
        "train_lm",
        ("model", "train"),
        ("checkpoints", "model", "logs", "previews"),
        "tokenize",
    ),
    Stage("generate", "tokkata.lm.sample", "sample", ("generate",), ("samples",), "train"),
    Stage("eval", "tokkata.eval.score", "evaluate", ("eval",), ("eval",), "generate"),
)

_TOKENIZE, _TRAIN, _GENERATE, _EVAL = TOKEN_MODEL_STAGES
DIFFUSION_STAGES = (
    _TOKENIZE,
    dataclasses.replace(_TRAIN, module="tokkata.diffusion.train", function="train_diffusion"),
    dataclasses.replace(_GENERATE, module="tokkata.diffusion.sample"),
    _EVAL,
)
FROM_AUDIO_STAGES = (
    _TOKENIZE,
    Stage("prepare", "tokkata.diffusion.prepare", "prepare", ("data", "audio"), ("audio",), "tokenize"),
    dataclasses.replace(DIFFUSION_STAGES[1], after="prepare"),
    *DIFFUSION_STAGES[2:],
)
DISTILLATION_STAGES = tuple(
    dataclasses.replace(stage, module="tokkata.diffusion.distill", function="distill")
    if stage.name == "train"
    else stage
    for stage in DIFFUSION_STAGES
)

GAN_STAGES = (
    _TOKENIZE,
    dataclasses.replace(_TRAIN, module="tokkata.gan.train", function="train_gan"),
    dataclasses.replace(_GENERATE, module="tokkata.gan.sample"),
    _EVAL,
)


def _heard_stages(sections: tuple[str, ...], output: str) -> tuple[Stage, ...]:
    """Those of an adversarial model that is told what another network has heard."""
    prepare = Stage("prepare", "tokkata.gan.prepare", "prepare", sections, (output,), "tokenize")
    return (_TOKENIZE, prepare, dataclasses.replace(GAN_STAGES[1], after="prepare"), *GAN_STAGES[2:])


_CODEC_PROGRAMS = {
    "dac": ("tokkata.tokenize.training.train_codec", "train_codec"),
    "encodec": ("tokkata.tokenize.training.train_codec", "train_codec"),
    "vae": ("tokkata.tokenize.training.train_vae", "train_vae"),
    "mel_vae": ("tokkata.tokenize.training.train_mel_vae", "train_mel_vae"),
}
"""By kind of codec: the module that trains it, and its function."""


_CODEC_EVAL = Stage("eval", "tokkata.eval.reconstruction", "evaluate_codec", ("eval",), ("eval",), "train")


def _codec_stages(kind: str) -> tuple[Stage, ...]:
    module, function = _CODEC_PROGRAMS[kind]
    channels = ("model.channels",) if kind == "vae" else ()
    return (
        Stage(
            "prepare",
            "tokkata.tokenize.training.prepare",
            "prepare",
            ("data", "audio", "model.sample_rate_hz", *channels),
            ("audio",),
        ),
        Stage("train", module, function, ("model", "train"), ("checkpoints", "model", "logs"), "prepare"),
        *(() if kind == "mel_vae" else (_CODEC_EVAL,)),  # which is heard without its phase
    )


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages that `recipe` runs through, in order."""
    model = recipe.model
    if isinstance(model, TrainedCodec):
        return _codec_stages(model.kind)
    if isinstance(model, ConsistencyModel):
        return DISTILLATION_STAGES
    if isinstance(model, TrainedSection) and model.from_audio:
        return FROM_AUDIO_STAGES
    if isinstance(model, DarkGanModel):
        return _heard_stages(("model.teacher",), "teacher")
    if isinstance(model, VqcpcGanModel):
        return _heard_stages(("model.encoder", "model.representation"), "encoder")
    if isinstance(model, GanSection):
        return GAN_STAGES
    return DIFFUSION_STAGES if isinstance(model, DiffusionSection) else TOKEN_MODEL_STAGES
