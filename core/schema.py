"""What a recipe can say: every section and setting, with its unit, default and meaning.

The many kinds of corpora, codecs, features and models have files of their own: `schema_corpora.py`,
`schema_codecs.py`, `schema_features.py`, `schema_models.py`, `schema_diffusion.py`, `schema_gan.py`,
`schema_generate.py` and `schema_trained_codecs.py`.

A recipe is data. Each class below is one section; the text under a setting becomes its description in
`recipes/schema.json` and in error messages. This module imports no stage and no torch, so a recipe is
checked in well under a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .schema_codecs import Codec
from .schema_corpora import Corpus
from .schema_diffusion import DIFFUSION_KINDS, DiffusionSection
from .schema_features import Features
from .schema_gan import GAN_KINDS, GanSection
from .schema_generate import (
    SAMPLERS,
    DiffusionGenerate,
    Family,
    GanGenerate,
    Generate,
    refuse_other_family,
)
from .schema_models import LanguageModelSection, Model, SampleSection, TransformerModel
from .schema_trained_codecs import DacModel, EncodecModel, MelVaeModel, TrainedCodec, VaeModel
from .sections import (
    NOT_BOOL,
    OPERATIONAL,
    Fraction,
    Integer,
    PositiveFloat,
    PositiveInt,
    Section,
    Split,
)

__all__ = [
    "DacModel",
    "EncodecModel",
    "Eval",
    "Generate",
    "MelVaeModel",
    "Recipe",
    "Tokenize",
    "Train",
    "TrainedCodec",
    "TransformerModel",
    "VaeModel",
]

# ------------------------------------------------------------------------------- training and what follows

EMBEDDING_PATTERN = (
    r"^(pocket|logmel|vggish(-google)?|clap(-music|-general)?|mert|encodec(-32khz|-48khz)?"
    r"|dac(-24khz|-16khz)?|(clap|codec):.+|(mert|w2v2):[^#]+(#[0-9]+)?)$"
)
"""The names that `tokkata.eval.embedding.load_embedding` takes, checked before any stage starts."""


class Train(Section):
    """The shared training loop; budgets are in optimizer steps."""

    steps: PositiveInt
    """Optimizer steps in all."""
    batch_size: PositiveInt = 16
    """Clips, or rows of clips, in one optimizer step, over all processes and accumulated micro-batches
    together."""
    grad_accumulation: PositiveInt = 1
    """Micro-batches that each process splits its share of a batch into."""
    crop_s: PositiveFloat = 2.0
    """Length of the training crops in seconds."""
    pack: bool = False
    """Of a transformer: lay clips shorter than a crop one after another in rows as long as a crop, where they
    do not see each other, instead of padding each."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's decay rates."""
    weight_decay: Annotated[float, Field(ge=0.0), NOT_BOOL] = 0.1
    """AdamW's decoupled weight decay; matrices only."""
    warmup_steps: Annotated[int, Field(ge=0), NOT_BOOL] = 100
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    final_lr_fraction: Fraction = 0.1
    """Where the cosine or the exponential ends, as a share of `lr`."""
    clip_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] = 0.99
    """Decay of the averaged weights that are validated, generated from and saved; 0 turns it off."""
    ema_sigma_rel: Annotated[float, Field(gt=0.0, lt=0.28), NOT_BOOL] | None = None
    """Average by a power function of the step instead (arXiv:2312.02696), of this width relative to the steps
    so far, such as 0.1; null: by `ema_decay`."""
    ema_every: PositiveInt = 1
    """Steps between two updates of the averaged weights."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; `no` is float32 throughout."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the model's blocks for the backward pass and compute the rest again: less
    memory, about a third more time."""
    compile: bool = False
    """Compile the model's blocks, and a language model's loss, with torch.compile; the first step takes
    longer."""
    seed: Integer = 0
    """Seed of initial weights, batches, crops and dropout."""
    log_every: PositiveInt = Field(default=10, json_schema_extra=OPERATIONAL)
    """Steps between two lines of the log."""
    validate_every: PositiveInt = Field(default=500, json_schema_extra=OPERATIONAL)
    """Steps between two validations; there is one at the end in any case."""
    previews: Annotated[int, Field(ge=0), NOT_BOOL] = Field(default=0, json_schema_extra=OPERATIONAL)
    """After each validation, so many clips as `generate` asks for them, always with the same noise and the
    same conditions, in `previews/step-…`; 0: none."""
    save_every: PositiveInt = Field(default=500, json_schema_extra=OPERATIONAL)
    """Steps between two checkpoints; there is one at the end and on SIGTERM in any case."""
    keep_checkpoints: PositiveInt = Field(default=3, json_schema_extra=OPERATIONAL)
    """How many of the newest checkpoints stay on disk."""
    timeout_s: PositiveFloat = Field(default=600.0, json_schema_extra=OPERATIONAL)
    """How long one process waits for the others before the run ends, in seconds: longer than the first one
    needs to write a checkpoint, previews and the model."""


class Audio(Section):
    """What is done to the audio of the corpus before anything else sees it; what was done is stored with
    each clip."""

    channels: Literal[1, 2] | None = None
    """Mix to this many channels; null: as many as the codec has."""
    loudness_lufs: Annotated[float, Field(ge=-70.0, le=0.0), NOT_BOOL] | None = None
    """Scale each clip to this integrated loudness (ITU-R BS.1770-4); null: leave it as it is. A clip whose
    peaks would go beyond full scale is scaled to a peak of 1 instead."""
    trim_silence_db: Annotated[float, Field(gt=0.0), NOT_BOOL] | None = None
    """Cut off the beginning and the end of a clip where it stays this many dB below its peak; null: keep
    all."""
    min_duration_s: PositiveFloat | None = None
    """Reject clips that are shorter than this (after trimming); null: only those below 0.05 s."""
    max_duration_s: PositiveFloat | None = None
    """Cut clips off after this many seconds (after trimming); null: keep all."""

    @model_validator(mode="after")
    def _check_durations(self) -> Self:
        if self.min_duration_s and self.max_duration_s and self.min_duration_s > self.max_duration_s:
            raise ValueError(
                f"min_duration_s {self.min_duration_s} is above max_duration_s {self.max_duration_s}"
            )
        return self


class Tokenize(Section):
    """Audio to tokens or latents."""

    store: Literal["codes", "latents", "projected_latents"] = "codes"
    """What is stored of each clip: the codec's discrete codes; its continuous latents (the encoder's output,
    for a VAE the posterior's mean and scale); or DAC's latents projected into its codebooks' space."""
    window_s: PositiveFloat = 20.0
    """Longer clips are encoded in windows of this length, in constant memory. For convolutional codecs the
    codes do not depend on it; for the others it is recorded in codec.json."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoder. bf16 is faster and changes some codes; `tokkata tokens` tells which was
    used."""
    batch_windows: PositiveInt = 8
    """Windows of equal length that are encoded at once."""
    num_readers: PositiveInt = Field(default=2, json_schema_extra=OPERATIONAL)
    """Threads that read and resample audio ahead of the codec, in each process."""

    shard_clips: PositiveInt = 256
    """Clips in one file of the store; a killed run redoes at most one such file."""
    features: Features = Field(default=[])
    """What is stored beside the tokens for models to be told: texts, melodies, styles."""


class Eval(Section):
    """Scores of the generated clips against held-out audio."""

    embedding: Annotated[str, Field(pattern=EMBEDDING_PATTERN)] = "pocket"
    """What the Fréchet distance compares: `pocket` (the pocket codec's encoder) and `logmel` need no
    download; `vggish`, `vggish-google`, `clap`, `clap-music`, `clap-general`, `mert`, `encodec`,
    `encodec-32khz`, `encodec-48khz`, `dac`, `dac-24khz`, `dac-16khz`; or `clap:ID`, `mert:ID`, `w2v2:ID` and
    `codec:ID` with a hub id or a folder, the middle two with a layer: `w2v2:facebook/wav2vec2-base#6`."""
    classifier: str | None = None
    """An audio classifier of `transformers`, a hub id or a folder, for scores of its labels (KL divergence,
    Inception score); null: none."""
    classifier_label: str | None = None
    """Label of the clips whose values are names of the classifier's labels, for the share that is given the
    right one; null: none."""
    reference: Split = "test"
    """Split of real audio that everything is compared with."""
    max_clips: PositiveInt = 256
    """At most this many clips of each set are scored."""
    num_players: PositiveInt = 8
    """Clips of each set that the report shows and plays."""
    picture: Literal["spectrogram", "rainbowgram"] = "spectrogram"
    """How the report shows clips: log-mel spectrograms, whose brightness is loudness, the same for all; or
    rainbowgrams, relative to the loudest of each clip and coloured by instantaneous frequency."""
    copies: bool = True
    """Also look for copies of training clips among the generated ones."""
    copies_max_h: PositiveFloat | None = 100.0
    """Hours of training audio, chosen at random, that generated clips are compared with by sound; null: all.
    Their tokens are compared with all training tokens in any case."""
    seed: Integer = 0
    """Seed of the noise baseline, of the choice of clips and of FAD-infinity's subsets."""


class Recipe(Section):
    """One run, from audio to scores."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run; its folder is `<runs_dir>/<name>`."""
    runs_dir: Path = Field(default=Path("runs"), json_schema_extra=OPERATIONAL)
    """Where run folders are made."""
    data: Corpus
    """Where the audio comes from."""
    audio: Audio = Audio()
    """What is done to it first."""
    codec: Codec | None = None
    """The codec that turns audio into tokens; token models need one."""
    tokenize: Tokenize = Tokenize()
    """How audio becomes tokens."""
    model: Model
    """What is trained."""
    train: Train
    """How it is trained."""
    generate: Annotated[Generate | DiffusionGenerate | GanGenerate, Field(discriminator="kind")] = Generate()
    """How it is sampled: a language model's settings, a diffusion model's, or an adversarial model's."""
    eval: Eval = Eval()
    """How it is scored."""

    @model_validator(mode="before")
    @classmethod
    def _tell_families_apart(cls, values: Any) -> Any:
        """The section `generate` is that of the model's family."""
        model = values.get("model") if isinstance(values, dict) else None
        given = values.get("generate", {}) if isinstance(values, dict) else None
        if not isinstance(model, dict) or not isinstance(given, dict):
            return values
        name = str(model.get("kind"))
        kind: Family = "latents" if name in DIFFUSION_KINDS else "images" if name in GAN_KINDS else "tokens"
        refuse_other_family(given, kind, name)
        return {**values, "generate": {"kind": kind, **given}}

    @model_validator(mode="after")
    def _check_diffusion(self) -> Self:
        model, generate = self.model, self.generate
        if not isinstance(model, DiffusionSection):
            return self
        if self.codec is None:
            raise ValueError(f"a {model.kind} is trained on latents: add a section 'codec'")
        if self.tokenize.store == "codes":
            raise ValueError(
                f"a {model.kind} is trained on latents, but tokenize.store is 'codes': set it to 'latents'"
            )
        assert isinstance(generate, DiffusionGenerate)
        known = SAMPLERS[model.objective_kind]
        if generate.sampler is not None and generate.sampler not in known:
            raise ValueError(
                f"generate.sampler {generate.sampler} does not go with the objective"
                f" '{model.objective_kind}', which has {', '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _check_gan(self) -> Self:
        model = self.model
        if not isinstance(model, GanSection):
            return self
        if self.codec is None or (not model.uses_codec and self.codec.kind != "linear"):
            what = "a codec's latents: add a section 'codec'" if model.uses_codec else "samples as they are"
            how = "" if model.uses_codec else ": set codec to {kind: linear, sample_rate_hz: 16000}"
            raise ValueError(f"a {model.kind} is trained on {what}{how}")
        if self.tokenize.store == "codes":
            raise ValueError(
                f"a {model.kind} is trained on numbers, but tokenize.store is 'codes': set it to 'latents'"
            )
        return self

    @model_validator(mode="after")
    def _check_codec(self) -> Self:
        if isinstance(self.model, LanguageModelSection) and self.codec is None:
            example = "mulaw" if self.model.kind in ("wavenet", "samplernn") else "pocket"
            raise ValueError(
                f"a {self.model.kind} is trained on tokens: add a section 'codec', such as 'kind: {example}'"
            )
        if isinstance(self.model, TrainedCodec) and self.codec is not None:
            raise ValueError(
                f"model '{self.model.kind}' is a codec and is trained on audio: remove the section 'codec'"
            )
        return self

    @model_validator(mode="after")
    def _check_assumed_noise(self) -> Self:
        level = getattr(self.generate, "assumed_noise", None)
        if level is None:
            return self
        if not isinstance(self.model, SampleSection) or not self.model.tell_noise:
            raise ValueError(
                "generate.assumed_noise is for sample-level models that are told how noisy what they see is:"
                " leave it out, or set model.input_noise and model.tell_noise"
            )
        if level > self.model.input_noise:
            raise ValueError(
                f"generate.assumed_noise {level:g} is above {self.model.input_noise:g}, the most noise that"
                " the model is trained with (model.input_noise)"
            )
        return self

    @model_validator(mode="after")
    def _check_previews(self) -> Self:
        if self.train.previews and isinstance(self.model, TrainedCodec):
            raise ValueError(
                f"train.previews are clips that a model makes up, and a '{self.model.kind}' is a codec, which"
                " makes up none: set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_packing(self) -> Self:
        if not self.train.pack:
            return self
        why = "train.pack lays several clips in one row, which"
        if not isinstance(self.model, TransformerModel):
            raise ValueError(f"{why} a model of kind '{self.model.kind}' cannot tell apart: turn it off")
        if self.model.pattern == "coarse_first":
            raise ValueError(f"{why} the pattern 'coarse_first' would mix: turn it off, or choose another")
        other = next((condition for condition in self.model.conditions if condition.fuse != "sum"), None)
        if other is not None:
            raise ValueError(
                f"{why} have no place each for the condition '{other.name}' to enter by '{other.fuse}':"
                " turn it off, or choose 'fuse: sum'"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs_dir / self.name
