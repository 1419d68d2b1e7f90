"""What a recipe can say: every section and setting, with its unit, default and meaning.

A recipe is data. Each class below is one section; the text under a setting becomes its description in
`recipes/schema.json` and in error messages. This module imports no stage and no torch, so a recipe is
checked in well under a second.

Settings marked `OPERATIONAL` change how a stage runs (how often it logs, how many workers read audio) but
not one bit of what it writes, so changing them never reruns a stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticKnownError

OPERATIONAL: dict[str, Any] = {"operational": True}


def _refuse_bool(value: object) -> object:
    # Python, and so pydantic, counts true and false as 1 and 0.
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


NOT_BOOL = BeforeValidator(_refuse_bool)  # stands last, or JSON Schema loses the limits before it
Integer = Annotated[int, NOT_BOOL]
Fraction = Annotated[float, Field(ge=0.0, le=1.0), NOT_BOOL]
PositiveInt = Annotated[int, Field(gt=0), NOT_BOOL]
PositiveFloat = Annotated[float, Field(gt=0.0), NOT_BOOL]
Split = Literal["train", "valid", "test"]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


# --- corpora


class SynthCorpus(Section):
    """Notes, phrases and chords synthesised from a seed; nothing is downloaded."""

    kind: Literal["synth"]
    num_clips: PositiveInt = 800
    """Number of clips over all splits."""
    duration_s: PositiveFloat = 2.0
    """Length of each clip in seconds."""
    sample_rate_hz: PositiveInt = 16000
    """Rate at which the clips are synthesised."""
    forms: list[Literal["note", "phrase", "chord"]] = Field(default=["note", "phrase", "chord"], min_length=1)
    """What a clip holds: one note, a short melody, or a chord; drawn with equal probability."""
    pitch_min: Annotated[int, Field(ge=21, le=108), NOT_BOOL] = 45
    """Lowest MIDI pitch (also the lowest root of a chord or phrase)."""
    pitch_max: Annotated[int, Field(ge=21, le=108), NOT_BOOL] = 76
    """Highest MIDI pitch of a root."""
    random_phase: bool = False
    """Let each oscillator start anywhere in its period instead of with the note: harder to predict."""
    seed: Integer = 0
    """Seed of the corpus; the same seed gives the same samples on every machine."""

    @model_validator(mode="after")
    def _check_pitches(self) -> Self:
        if self.pitch_min > self.pitch_max:
            raise ValueError(f"pitch_min {self.pitch_min} is above pitch_max {self.pitch_max}")
        return self


class FolderCorpus(Section):
    """Every wav, flac, ogg and mp3 file under a folder."""

    kind: Literal["folder"]
    root: Path
    """The folder; searched recursively, never written to."""
    valid_fraction: Fraction = 0.1
    """Share of the files used for validation, chosen by a stable hash of the path below `root`."""
    test_fraction: Fraction = 0.1
    """Share of the files held out for scoring, chosen the same way."""
    label_from_parent: bool = False
    """Use the name of the folder that a file lies in as its label `folder`."""

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction {self.valid_fraction} and test_fraction {self.test_fraction} leave nothing"
                " to train on: together they must be below 1"
            )
        return self


class SoundFontCorpus(Section):
    """Short random pieces rendered by `fluidsynth` from a General MIDI SoundFont."""

    kind: Literal["soundfont"]
    soundfont: Path = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
    """The .sf2 file (Debian: package `fluid-soundfont-gm`)."""
    num_clips: PositiveInt = 400
    """Number of pieces over all splits."""
    duration_s: PositiveFloat = 8.0
    """Length of each piece in seconds."""
    seed: Integer = 0
    """Seed of the pieces."""


class MixedCorpus(Section):
    """Several corpora as one; the ids and splits of each are kept, prefixed with its position."""

    kind: Literal["mixed"]
    corpora: list[Annotated[SynthCorpus | FolderCorpus | SoundFontCorpus, Field(discriminator="kind")]] = (
        Field(min_length=1)
    )
    """The corpora, in order."""


Corpus = Annotated[SynthCorpus | FolderCorpus | SoundFontCorpus | MixedCorpus, Field(discriminator="kind")]

# ----------------------------------------------------------------------------------------------- codecs


class PocketCodec(Section):
    """The codec that ships with Tokkata: 16 kHz mono, 50 frames/s, 8 codebooks of 1024."""

    kind: Literal["pocket"]


class EncodecCodec(Section):
    """EnCodec (arXiv:2210.13438) in its `transformers` port."""

    kind: Literal["encodec"]
    id: str
    """Hub id such as `facebook/encodec_32khz`, or a local folder in the hub's layout."""
    revision: str | None = None
    """Commit or tag on the Hub; pin it, revisions have changed numerics before."""
    bandwidth_kbps: PositiveFloat
    """Target bandwidth; it decides how many codebooks are used, so there is no default."""


class DacCodec(Section):
    """Descript Audio Codec (arXiv:2306.06546) in its `transformers` port."""

    kind: Literal["dac"]
    id: str
    """Hub id such as `descript/dac_44khz`, or a local folder in the hub's layout."""
    revision: str | None = None
    """Commit or tag on the Hub; pin it, revisions have changed numerics before."""
    num_codebooks: PositiveInt
    """How many of the codec's codebooks to keep, coarsest first."""


Codec = Annotated[PocketCodec | EncodecCodec | DacCodec, Field(discriminator="kind")]

# ----------------------------------------------------------------------------------------------- models


class TransformerModel(Section):
    """A decoder-only Transformer over K codebooks in a delay pattern."""

    kind: Literal["transformer"]
    dim: PositiveInt = 256
    """Width of the residual stream."""
    num_layers: PositiveInt = 6
    """Number of blocks."""
    num_heads: PositiveInt = 4
    """Attention heads; must divide `dim`."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] = 0.0
    """Dropout on the residual branches while training."""
    conditions: list[str] = []
    """Label columns of the corpus that the model is told, such as `pitch`."""
    condition_dropout: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] = 0.1
    """Probability, drawn for each clip alone, that its labels are hidden (for classifier-free guidance)."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"dim {self.dim} must be a multiple of 2 * num_heads = {2 * self.num_heads}"
                " (rotary positions need an even head width)"
            )
        return self


class DacModel(Section):
    """A Descript Audio Codec to train: residual vector quantisation over a convolutional autoencoder."""

    kind: Literal["dac"]
    sample_rate_hz: PositiveInt = 16000
    """Sample rate of the audio."""
    encoder_dim: PositiveInt = 16
    """Channels after the first convolution; doubled at each stride."""
    encoder_rates: list[PositiveInt] = [5, 4, 4, 4]
    """Strides of the encoder, mirrored by the decoder; their product is the hop length in samples."""
    decoder_dim: PositiveInt = 256
    """Channels before the first upsampling; halved at each stride."""
    num_codebooks: PositiveInt = 8
    """Residual quantisation stages."""
    codebook_size: PositiveInt = 1024
    """Entries of each codebook."""
    codebook_dim: PositiveInt = 8
    """Width of the factorised lookup."""
    quantizer_dropout: Fraction = 0.25
    """Share of clips in a batch for which only a random number of the codebooks is used."""
    mel_floor: PositiveFloat = 1e-2
    """Mel magnitudes below this count as this: what nobody hears must not rule the loss (a full-scale
    sine has a magnitude of a quarter of the window's length)."""
    mel_weight: Annotated[float, Field(ge=0.0), NOT_BOOL] = 15.0
    """Weight of the multi-scale log-mel distance."""
    waveform_weight: Annotated[float, Field(ge=0.0), NOT_BOOL] = 10.0
    """Weight of the waveform's mean absolute error relative to the mean absolute amplitude."""
    codebook_weight: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1.0
    """Weight of the term that moves codebook entries towards the encoder's output."""
    commitment_weight: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1.0
    """Weight of the term that moves the encoder's output towards codebook entries."""
    codebook_lr_scale: PositiveFloat = 10.0
    """Learning rate of the codebooks, as a multiple of `train.lr`: an entry is met in few steps only, and
    would fall behind an encoder that learns in all."""
    store: Literal["float32", "float16"] = "float32"
    """Number format of the saved weights; float16 halves the file, and it is loaded as float32."""


Model = Annotated[TransformerModel | DacModel, Field(discriminator="kind")]

# ------------------------------------------------------------------------------- training and what follows


class Train(Section):
    """The shared training loop; budgets are in optimizer steps."""

    steps: PositiveInt
    """Optimizer steps in all."""
    batch_size: PositiveInt = 16
    """Clips in one optimizer step, over all processes and accumulated micro-batches together."""
    grad_accumulation: PositiveInt = 1
    """Micro-batches that each process splits its share of a batch into."""
    crop_s: PositiveFloat = 2.0
    """Length of the training crops in seconds."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's decay rates."""
    weight_decay: Annotated[float, Field(ge=0.0), NOT_BOOL] = 0.1
    """AdamW's decoupled weight decay; matrices only."""
    warmup_steps: Annotated[int, Field(ge=0), NOT_BOOL] = 100
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    final_lr_fraction: Fraction = 0.1
    """Where the cosine ends, as a share of `lr`."""
    clip_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] = 0.99
    """Decay a step of the averaged weights that are validated, generated from and saved; 0 turns it off."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; `no` is float32 throughout."""
    seed: Integer = 0
    """Seed of initial weights, batches, crops and dropout."""
    log_every: PositiveInt = Field(default=10, json_schema_extra=OPERATIONAL)
    """Steps between two lines of the log."""
    validate_every: PositiveInt = Field(default=500, json_schema_extra=OPERATIONAL)
    """Steps between two validations; there is one at the end in any case."""
    save_every: PositiveInt = Field(default=500, json_schema_extra=OPERATIONAL)
    """Steps between two checkpoints; there is one at the end and on SIGTERM in any case."""
    keep_checkpoints: PositiveInt = Field(default=3, json_schema_extra=OPERATIONAL)
    """How many of the newest checkpoints stay on disk."""


class Tokenize(Section):
    """Audio to tokens."""

    shard_clips: PositiveInt = 256
    """Clips in one file of the store; a killed run redoes at most one such file."""


class Generate(Section):
    """Sampling from the trained model."""

    num_clips: PositiveInt = 64
    """Number of clips."""
    duration_s: PositiveFloat = 2.0
    """Length of each clip in seconds."""
    labels_from: Split = "test"
    """Split whose clips lend their labels, so that what is asked for is distributed like real audio."""
    temperature: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1.0
    """Softmax temperature; 0 always takes the likeliest token."""
    top_k: PositiveInt | None = 250
    """Sample among this many likeliest tokens; null: no such limit."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0), NOT_BOOL] | None = None
    """Sample among the likeliest tokens that together have this probability; null: no such limit."""
    cfg_scale: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1.0
    """Classifier-free guidance; 1 is none, and costs half."""
    prompt_s: Annotated[float, Field(ge=0.0), NOT_BOOL] = 0.0
    """Seconds of a real clip (of `labels_from`) that each generated clip continues; 0: none."""
    batch_size: PositiveInt = 32
    """Clips generated at once."""
    seed: Integer = 0
    """Seed of the sampling."""
    untrained_baseline: bool = True
    """Also sample from the same architecture with random weights, as a baseline for the scores."""


class Eval(Section):
    """Scores of the generated clips against held-out audio."""

    embedding: Literal["pocket"] = "pocket"
    """Network whose activations the Fréchet distance compares: the pocket codec's encoder."""
    reference: Split = "test"
    """Split of real audio that everything is compared with."""
    max_clips: PositiveInt = 256
    """At most this many clips of each set are scored."""
    num_players: PositiveInt = 8
    """Clips of each set that the report shows and plays."""
    seed: Integer = 0
    """Seed of the noise baseline, of the choice of clips and of FAD-infinity's subsets."""


class Recipe(Section):
    """One run, from audio to scores."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run; its folder is `<runs_dir>/<name>`."""
    runs_dir: Path = Field(default=Path("runs"), json_schema_extra=OPERATIONAL)
    """Where run folders are made."""
    data: Corpus
    """The audio."""
    codec: Codec | None = None
    """The codec that turns audio into tokens; token models need one."""
    tokenize: Tokenize = Tokenize()
    """How audio becomes tokens."""
    model: Model
    """What is trained."""
    train: Train
    """How it is trained."""
    generate: Generate = Generate()
    """How it is sampled."""
    eval: Eval = Eval()
    """How it is scored."""

    @model_validator(mode="after")
    def _check_codec(self) -> Self:
        if self.model.kind == "transformer" and self.codec is None:
            raise ValueError(
                "a transformer is trained on tokens: add a section 'codec', such as 'kind: pocket'"
            )
        if self.model.kind == "dac" and self.codec is not None:
            raise ValueError("model 'dac' is a codec and is trained on audio: remove the section 'codec'")
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs_dir / self.name
