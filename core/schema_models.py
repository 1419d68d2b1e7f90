"""The models that a recipe can train; part of `schema.py`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from .schema_conditions import ModelCondition
from .schema_diffusion import ConsistencyModel, DitModel, StableAudioModel, UNetModel
from .schema_gan import (
    DarkGanModel,
    DrumGanModel,
    GanSynthModel,
    MusikaModel,
    SpecGanModel,
    VqcpcGanModel,
    WaveGanModel,
)
from .schema_trained_codecs import DacModel, EncodecModel, MelVaeModel, VaeModel
from .sections import NOT_BOOL, OPERATIONAL, PositiveInt, Section

Dropout = Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL]


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


_SHAPE = (
    "dim",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "feed_forward_dim",
    "norm",
    "activation",
    "positions",
    "qk_norm",
    "pattern",
    "delays",
)
"""What a model that training begins from decides."""


class Lora(Section):
    """Low-rank adapters (LoRA, arXiv:2106.09685): all other weights stay as they are."""

    rank: PositiveInt = 16
    """Rank of what is added to each adapted matrix."""
    alpha: PositiveInt = 32
    """Its scale: what is added is multiplied by alpha / rank."""
    dropout: Dropout = 0.0
    """Dropout on the input of the adapters while training."""
    targets: list[Literal["qkv", "out", "query", "key_value", "up", "down"]] = Field(
        default=["qkv", "out", "query", "key_value", "up", "down"], min_length=1
    )
    """Which matrices of each block: `qkv` and `out` of attention (`out` of cross-attention too), `query` and
    `key_value` of cross-attention, `up` and `down` of the feed-forward layer."""


class TransformerModel(LanguageModelSection):
    """A decoder-only Transformer over K codebooks."""

    kind: Literal["transformer"]
    init_from: str | None = None
    """A model whose weights training begins from: a MusicGen (`facebook/musicgen-small`) or a model of
    Tokkata, by hub id or folder. Shape, pattern, window and conditions are then its own and are not given
    here; `conditions` are those that are added, and `dropout` is its own unless given."""
    init_revision: str | None = None
    """Commit or tag on the Hub."""
    lora: Lora | None = None
    """Train low-rank adapters of `init_from` instead of all its weights."""
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

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.init_from is None:
            if self.lora is not None:
                raise ValueError("lora adapts a model that is there: name it in init_from")
            if self.init_revision is not None:
                raise ValueError("init_revision belongs to init_from, which is not given")
            return self
        given = next((name for name in _SHAPE if name in self.model_fields_set), None)
        if given is not None:
            raise ValueError(f"{given} is that of init_from {self.init_from}: remove it")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_inherited(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Defaults that the source's settings take the place of are no settings of a resolved recipe."""
        values: dict[str, Any] = handler(self)
        inherited = (*_SHAPE, "dropout") if self.init_from is not None else ()
        return {
            name: value
            for name, value in values.items()
            if name not in inherited or name in self.model_fields_set
        }


class _SummedSection(LanguageModelSection):
    """What the small families are asked: their conditions are summed into every step."""

    @model_validator(mode="after")
    def _check_fuse(self) -> Self:
        other = next((condition for condition in self.conditions if condition.fuse != "sum"), None)
        if other is not None:
            raise ValueError(
                f"the condition '{other.name}' cannot enter this kind of model by '{other.fuse}':"
                " remove `fuse`"
            )
        return self


WAVENET_PRESETS: dict[str, dict[str, int]] = {
    "small": {"num_stacks": 5, "layers_per_stack": 10, "kernel_size": 2,
              "residual_channels": 32, "gate_channels": 32, "skip_channels": 512},
    "large": {"num_stacks": 3, "layers_per_stack": 10, "kernel_size": 3,
              "residual_channels": 128, "gate_channels": 128, "skip_channels": 128},
}  # fmt: skip
"""Receptive fields at 16 kHz: 0.32 s and 0.38 s."""


class SampleSection(_SummedSection):
    """What models over single samples are asked besides."""

    input_noise: Annotated[float, Field(ge=0.0), NOT_BOOL] = 0.0
    """Standard deviation, in classes, of noise on the samples that the model sees in training, while it
    predicts the clean ones: it learns to correct the errors that it makes when it generates."""
    tell_noise: bool = False
    """Whether `input_noise` is the most that a clip gets, and the model is told how much it is: then it needs
    no more bits for clean samples, and `generate.assumed_noise` says how far it trusts itself."""

    @model_validator(mode="after")
    def _check_noise(self) -> Self:
        if self.tell_noise and not self.input_noise:
            raise ValueError("tell_noise needs noise to tell of: give input_noise, such as 8")
        return self


class WaveNetModel(SampleSection):
    """A WaveNet (arXiv:1609.03499) over samples: over the codecs `mulaw` and `linear`."""

    kind: Literal["wavenet"]
    preset: Literal["small", "large"] | None = None
    """Settings of well-known models, for those that are not given: `small` is 5 × 10 layers of 32 channels,
    `large` 3 × 10 layers of 128. null: the defaults below, for a CPU."""
    num_stacks: PositiveInt = 2
    """How often the dilations 1, 2, 4, … are gone through."""
    layers_per_stack: PositiveInt = 10
    """Layers of a stack; the last one's dilation is 2^(n - 1)."""
    kernel_size: Annotated[int, Field(ge=2), NOT_BOOL] = 2
    """Taps of each convolution."""
    residual_channels: PositiveInt = 32
    """Width of the path from layer to layer."""
    gate_channels: PositiveInt = 32
    """Width of the tanh half of a layer, and of its sigmoid half."""
    skip_channels: PositiveInt = 128
    """Width of the path from all layers to the output."""
    condition_channels: PositiveInt = 64
    """Width of a condition before it enters the layers."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, value: Any) -> Any:
        preset = value.get("preset") if isinstance(value, dict) else None
        return {**WAVENET_PRESETS[preset], **value} if preset in WAVENET_PRESETS else value


class CausalConvModel(_SummedSection):
    """Causal convolutions over codec tokens: WaveNet's layers where a step is a frame. A small baseline."""

    kind: Literal["causal_conv"]
    pattern: Literal["delay", "parallel", "flatten"] = "delay"
    """In which order the tokens of a frame are predicted."""
    num_stacks: PositiveInt = 2
    """How often the dilations 1, 2, 4, … are gone through."""
    layers_per_stack: PositiveInt = 5
    """Layers of a stack; the last one's dilation is 2^(n - 1)."""
    kernel_size: Annotated[int, Field(ge=2), NOT_BOOL] = 3
    """Taps of each convolution."""
    residual_channels: PositiveInt = 128
    """Width of the path from layer to layer."""
    gate_channels: PositiveInt = 128
    """Width of the tanh half of a layer, and of its sigmoid half."""
    skip_channels: PositiveInt = 256
    """Width of the path from all layers to the output."""
    condition_channels: PositiveInt = 64
    """Width of a condition before it enters the layers."""


class RNNModel(_SummedSection):
    """A recurrent network over codec tokens. A small baseline."""

    kind: Literal["rnn"]
    pattern: Literal["delay", "parallel", "flatten"] = "delay"
    """In which order the tokens of a frame are predicted."""
    cell: Literal["gru", "lstm"] = "lstm"
    """What the layers are made of."""
    dim: PositiveInt = 384
    """Width."""
    num_layers: PositiveInt = 2
    """Number of layers."""
    dropout: Dropout = 0.0
    """Dropout on the input and between the layers while training."""


class SampleRNNModel(SampleSection):
    """A SampleRNN (arXiv:1612.07837) over samples: over the codecs `linear` and `mulaw`. It is trained on
    consecutive chunks of `train.crop_s`, with its state carried from one to the next."""

    kind: Literal["samplernn"]
    frame_sizes: list[PositiveInt] = Field(default=[8, 2], min_length=1)
    """Samples in a frame of each recurrent tier, from the slowest on, each a multiple of the next; single
    samples are one more tier. The paper's models have [8, 2] and [16]."""
    dim: PositiveInt = 1024
    """Width of all tiers."""
    cell: Literal["gru", "lstm"] = "gru"
    """What the recurrent tiers are made of."""
    num_layers: PositiveInt = 1
    """Recurrent layers in each tier."""
    embedding_dim: PositiveInt = 256
    """Width of a sample's embedding in the last tier."""

    @model_validator(mode="after")
    def _check_frame_sizes(self) -> Self:
        ends = [*self.frame_sizes, 1]
        if any(a % b or a <= b for a, b in pairwise(ends)):
            raise ValueError(
                f"frame_sizes {self.frame_sizes} must fall, each a multiple of the next, such as [8, 2]"
            )
        return self


Model = Annotated[
    TransformerModel
    | WaveNetModel
    | SampleRNNModel
    | RNNModel
    | CausalConvModel
    | DitModel
    | UNetModel
    | StableAudioModel
    | ConsistencyModel
    | DacModel
    | EncodecModel
    | VaeModel
    | MelVaeModel
    | WaveGanModel
    | SpecGanModel
    | GanSynthModel
    | DrumGanModel
    | DarkGanModel
    | VqcpcGanModel
    | MusikaModel,
    Field(discriminator="kind"),
]
