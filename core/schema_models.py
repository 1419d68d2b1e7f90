"""The models that a recipe can train; part of `schema.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from .sections import NOT_BOOL, OPERATIONAL, Fraction, PositiveFloat, PositiveInt, Section

Dropout = Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL]


class ModelCondition(Section):
    """Something that a model is told about each clip. In a recipe, `pitch` is short for `{name: pitch}`."""

    name: str
    """A label column of the corpus, such as `pitch` or `tags`, or a feature of `tokenize.features`."""
    fuse: Literal["sum", "prepend", "cross"] = "sum"
    """How it enters: summed into every step (of a sequence, its mean), prepended to the steps, or attended to
    by cross-attention."""
    length: PositiveInt | None = None
    """Of a feature with many vectors a clip: pad or cut every clip's to this many; null: the longest of a
    batch decides."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        section = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [{"type": "string", "description": "A label column or a feature."}, section]}


class LanguageModelSection(Section):
    """What every language model over tokens is asked."""

    conditions: list[ModelCondition] = Field(default=[])
    """What the model is told about a clip: label columns of the corpus, features of `tokenize.features`."""
    condition_dropout: Dropout = 0.1
    """Probability, drawn for each clip alone, that its conditions are hidden (for classifier-free
    guidance)."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [condition.name for condition in self.conditions]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the condition '{twice}' is named twice")
        return self


class TransformerModel(LanguageModelSection):
    """A decoder-only Transformer over K codebooks."""

    kind: Literal["transformer"]
    dim: PositiveInt = 256
    """Width of the residual stream."""
    num_layers: PositiveInt = 6
    """Number of blocks."""
    num_heads: PositiveInt = 4
    """Attention heads; must divide `dim` into heads of even width."""
    num_kv_heads: PositiveInt | None = None
    """Key and value heads, shared by groups of query heads; null: as many as `num_heads`."""
    feed_forward_dim: PositiveInt | None = None
    """Hidden width of the feed-forward layers; null: 8/3 of `dim` for swiglu, 4 times for gelu."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before each branch; MusicGen has layernorm."""
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """Of the feed-forward layers; MusicGen has gelu."""
    positions: Literal["rope", "sinusoidal"] = "rope"
    """Rotary positions, or sinusoids added to the input as in MusicGen."""
    qk_norm: bool = True
    """Normalise queries and keys; MusicGen does not."""
    pattern: Literal["delay", "parallel", "flatten", "coarse_first"] = "delay"
    """In which order the tokens of a frame are predicted: each codebook some steps after the one before, all
    at once, one after another, or all frames of the first codebook before the others."""
    delays: list[Annotated[int, Field(ge=0), NOT_BOOL]] | None = None
    """Of the pattern delay: steps by which each codebook is shifted; null: 0, 1, 2, …"""
    dropout: Dropout = 0.0
    """Dropout on the input and the residual branches while training."""
    attention: Literal["sdpa", "xformers", "flex"] = Field(default="sdpa", json_schema_extra=OPERATIONAL)
    """Library that computes attention in training: PyTorch's own; xFormers (CUDA); or PyTorch's compiled flex
    attention. Where it cannot be used, one line says why and sdpa is."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"dim {self.dim} must be a multiple of 2 * num_heads = {2 * self.num_heads}"
                " (heads need an even width)"
            )
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.delays is not None and self.pattern != "delay":
            raise ValueError(f"delays belong to the pattern 'delay', not to '{self.pattern}'")
        return self


class DacModel(Section):
    """A Descript Audio Codec to train: residual vector quantisation over a convolutional autoencoder."""

    kind: Literal["dac"]
    sample_rate_hz: PositiveInt = 16000
    """Sample rate of the audio."""
    encoder_dim: PositiveInt = 16
    """Channels after the first convolution; doubled at each stride."""
    encoder_rates: list[PositiveInt] = Field(default=[5, 4, 4, 4])
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
