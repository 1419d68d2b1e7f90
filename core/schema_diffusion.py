"""The diffusion models that a recipe can train, and their objectives; part of `schema.py`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .schema_conditions import ModelCondition
from .sections import NOT_BOOL, OPERATIONAL, Fraction, PositiveFloat, PositiveInt, Section

Number = Annotated[float, NOT_BOOL]


class DdpmObjective(Section):
    """Predict the noise of a diffusion in 1000 steps: DDPM (arXiv:2006.11239)."""

    kind: Literal["ddpm"]
    schedule: Literal["linear", "cosine"] = "linear"
    """How beta grows: linearly as in the paper, or so that alpha falls like a cosine (arXiv:2102.09672)."""


class VelocityObjective(Section):
    """Predict v, between noise and latents (arXiv:2202.00512), as Stable Audio does."""

    kind: Literal["v"]
    schedule: Literal["trigonometric", "linear", "cosine"] = "trigonometric"
    """alpha is cos(pi t / 2) at any time t in 0…1; or one of the two tables of DDPM."""
    zero_terminal_snr: bool = True
    """Whether those tables are rescaled to end with noise alone (arXiv:2305.08891)."""


class FlowObjective(Section):
    """Predict the direction of a straight line from latents to noise: rectified flow (arXiv:2209.03003)."""

    kind: Literal["flow"]
    time: Literal["uniform", "logit_normal"] = "logit_normal"
    """At which times clips are trained; logit-normal (arXiv:2403.03206) favours those in the middle."""
    time_mean: Number = 0.0
    """Mean of the logit-normal distribution; above 0: more noise."""
    time_std: PositiveFloat = 1.0
    """Its standard deviation."""
    shift: PositiveFloat = 1.0
    """Above 1: more of the times, in training and in sampling, are near noise; for long clips."""


class EdmObjective(Section):
    """Preconditioning and weighting of EDM (arXiv:2206.00364), in units of the latents' deviation."""

    kind: Literal["edm"]
    log_sigma_mean: Number = -0.5
    """Mean of the logarithm of the noise level in training."""
    log_sigma_std: PositiveFloat = 1.2
    """Its standard deviation."""
    sigma_min: PositiveFloat = 0.004
    """Noise level at the end of sampling."""
    sigma_max: PositiveFloat = 160.0
    """Noise level at its beginning."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


Objective = Annotated[
    DdpmObjective | VelocityObjective | FlowObjective | EdmObjective, Field(discriminator="kind")
]


class DiffusionSection(Section):
    """What every diffusion model over latents is asked."""

    kind: str  # stands here so that it comes first
    condition_dropout: Fraction = 0.1
    """Share of clips whose conditions are hidden, for classifier-free guidance."""
    sample_posterior: bool = False
    """Of a variational autoencoder's latents: draw them anew each time, instead of taking the mean."""
    attention: Literal["sdpa", "xformers", "flex"] = Field(default="sdpa", json_schema_extra=OPERATIONAL)
    """Library that computes self-attention: PyTorch's own; xFormers (CUDA); or PyTorch's compiled flex
    attention. Where it cannot be used, one line says why and sdpa is."""

    @property
    @abstractmethod
    def objective_kind(self) -> str:
        """Of the model that is saved."""


class TrainedSection(DiffusionSection):
    """What a network that is trained on latents, and not on what another one says, is asked besides."""

    from_audio: bool = False
    """Encode crops that begin at any sample in every step, instead of reading stored latents, which are then
    what is validated on, and what says how latents are normalised. Needs the codec's time in every step, and
    the whole corpus as 16-bit samples on the disk (stage `prepare`)."""


class NetworkSection(TrainedSection):
    """What a new network over latents is asked."""

    conditions: list[ModelCondition] = Field(default=[])
    """What the model is told about a clip: label columns of the corpus, features of `tokenize.features`,
    timing."""
    objective: Objective = FlowObjective(kind="flow")
    """What is predicted, and how noise is added."""
    mask_conditions: bool = False
    """Also train to fill in and to go on: the model is told some of a clip's latents, and where they are. Of
    ten clips, eight are made whole, one has random segments to fill in, one goes on from its beginning."""

    @property
    def objective_kind(self) -> str:
        """Of the model that is saved."""
        return self.objective.kind


class DitModel(NetworkSection):
    """A diffusion Transformer over latents (arXiv:2212.09748)."""

    kind: Literal["dit"]
    dim: PositiveInt = 256
    """Width."""
    num_layers: PositiveInt = 6
    """Number of blocks."""
    num_heads: PositiveInt = 4
    """Attention heads; they divide `dim` into even parts."""
    feed_forward_dim: PositiveInt | None = None
    """Hidden width of the feed-forward layers; null: 8/3 of `dim`."""
    patch_size: PositiveInt = 1
    """Frames that are one token; 2 is about twice as fast."""
    num_registers: Annotated[int, Field(ge=0), NOT_BOOL] = 0
    """Learned tokens that tell nothing (arXiv:2309.16588)."""
    qk_norm: bool = True
    """Normalise queries and keys."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"dim {self.dim} must be a multiple of 2 * num_heads = {2 * self.num_heads}"
                " (heads need an even width)"
            )
        return self


class UNetModel(NetworkSection):
    """A one-dimensional UNet over latents: small, and quick on a CPU."""

    kind: Literal["unet"]
    channels: list[PositiveInt] = Field(default=[64, 128, 256], min_length=1)
    """Channels of each level; each but the first has half the frame rate of the one before."""
    num_blocks: PositiveInt = 1
    """Residual blocks of each level, on the way down and on the way up."""
    num_attention_blocks: Annotated[int, Field(ge=0), NOT_BOOL] = 1
    """Transformer blocks at the lowest level."""
    num_heads: PositiveInt = 4
    """Of attention; they divide the lowest level's channels into even parts."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.channels[-1] % (2 * self.num_heads):
            raise ValueError(
                f"channels {self.channels} must end with a multiple of 2 * num_heads = {2 * self.num_heads}"
            )
        other = next((condition for condition in self.conditions if condition.fuse == "prepend"), None)
        if other is not None:
            raise ValueError(
                f"a unet has no place before the frames for the condition '{other.name}':"
                " choose 'fuse: sum' or 'fuse: cross'"
            )
        return self


class ConsistencyModel(DiffusionSection):
    """A trained flow distilled to a few steps: consistency distillation (arXiv:2303.01469). Network,
    conditions and the length of clips are the teacher's."""

    kind: Literal["consistency"]
    teacher: str
    """A diffusion model with the objective `flow`: its folder, a run's, or a hub id. Its weights are where
    training begins."""
    teacher_revision: str | None = None
    """Commit or tag on the Hub."""
    cfg_scale: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1.0
    """Classifier-free guidance of the teacher, which becomes part of what is learned: the new model needs
    none of its own. 1 is none."""
    num_intervals: Annotated[int, Field(ge=2), NOT_BOOL] = 16
    """Parts of the way from noise to latents; over each, the teacher takes one step of Heun's method."""
    target_decay: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] = 0.95
    """Decay of the averaged weights that say where a part of the way leads; 0: the newest weights do."""

    @property
    def objective_kind(self) -> str:
        """Of the model that is saved."""
        return "consistency"


class StableAudioModel(TrainedSection):
    """A Stable Audio Open (arXiv:2407.14358), fine-tuned. Network, conditions and objective are the source's,
    and clips shorter than `train.crop_s` are followed by silence, as in its own training."""

    kind: Literal["stable_audio"]
    source: str
    """A pipeline in the layout of `diffusers`, or a model that was fine-tuned before: a hub id, a folder or a
    run's."""
    source_revision: str | None = None
    """Commit or tag on the Hub."""
    save_pipeline: bool = False
    """Also write the folder `model/pipeline`, which diffusers' `StableAudioPipeline` loads; codec and text
    encoder are copied from the source, which has to be a pipeline."""

    @property
    def objective_kind(self) -> str:
        """Of the model that is saved."""
        return "v"


DIFFUSION_KINDS = ("dit", "unet", "stable_audio", "consistency")
"""The kinds of the sections above."""
