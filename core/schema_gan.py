"""The adversarial models that a recipe can train, what they make, and how they are judged; part of
`schema.py`.

A section of these travels whole in a model's `config.json`, so a setting that is added needs a default with
which old models stay what they are.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .sections import NOT_BOOL, OPERATIONAL, Fraction, PositiveFloat, PositiveInt, Section

Weight = Annotated[float, Field(ge=0.0), NOT_BOOL]
WindowSize = Annotated[int, Field(ge=16, multiple_of=4), NOT_BOOL]

# ------------------------------------------------------------------------------------------ representations


class WaveformImage(Section):
    """The samples themselves."""

    kind: Literal["waveform"]


class SpectralImage(Section):
    """What every spectrogram is asked."""

    window: WindowSize
    """Window of the transform in samples; half as many frequencies are kept."""
    hop: PositiveInt
    """Samples between two windows."""

    @model_validator(mode="after")
    def _check_hop(self) -> Self:
        if 2 * self.hop > self.window:
            raise ValueError(f"the hop {self.hop} is above half of the window {self.window}")
        return self


class LogMagnitudeImage(SpectralImage):
    """Log magnitudes, normalised frequency by frequency and clipped; heard through Griffin and Lim's
    algorithm (SpecGAN, arXiv:1802.04208)."""

    kind: Literal["log_magnitude"]
    window: WindowSize = 256
    """Window of the transform in samples; half as many frequencies are kept."""
    hop: PositiveInt = 128
    """Samples between two windows."""
    clip_std: PositiveFloat = 3.0
    """Values beyond this many standard deviations are clipped; what is left is divided by it."""
    griffin_lim_steps: PositiveInt = 16
    """Iterations that look for phases."""


class ComplexImage(SpectralImage):
    """Real and imaginary parts (DrumGAN, arXiv:2008.12073)."""

    kind: Literal["complex"]
    window: WindowSize = 1024
    """Window of the transform in samples; half as many frequencies are kept."""
    hop: PositiveInt = 256
    """Samples between two windows."""
    power: Annotated[float, Field(gt=0.0, le=1.0), NOT_BOOL] = 1.0
    """Magnitudes are raised to this; 1: the paper's, of which most values are next to zero."""


class InstantaneousFrequencyImage(SpectralImage):
    """Log magnitudes and instantaneous frequencies (GANSynth, arXiv:1902.08710)."""

    kind: Literal["instantaneous_frequency"]
    window: WindowSize = 2048
    """Window of the transform in samples; half as many frequencies are kept."""
    hop: PositiveInt = 512
    """Samples between two windows."""
    num_mels: PositiveInt | None = None
    """Spread the frequencies on the mel scale, in so many bands; GANSynth's are as many as the frequencies.
    null: leave them."""
    range_db: PositiveFloat = 100.0
    """What is so many decibels below the loudest looks like silence."""
    advance: Literal["angle", "phasor"] = "angle"
    """How an image holds what phases advance by from frame to frame. angle: as GANSynth does, one channel.
    phasor: as two, cosine and sine of what a phase advances by beyond a sinusoid in the middle of its bin or
    band, both times the share of the range that its magnitude has: every partial looks alike wherever it
    lies, nothing jumps where an angle goes round, and what is next to silent is next to 0."""


class LatentImage(Section):
    """The latents of the recipe's codec, each dimension normalised (Musika, arXiv:2208.08706)."""

    kind: Literal["latents"]


Representation = Annotated[
    WaveformImage | LogMagnitudeImage | ComplexImage | InstantaneousFrequencyImage | LatentImage,
    Field(discriminator="kind"),
]

# ---------------------------------------------------------------------------------------------------- losses


class MinimaxLoss(Section):
    """The game of arXiv:1406.2661, eq. 1: the generator maximises what the discriminator minimises."""

    kind: Literal["minimax"]


class NonSaturatingLoss(Section):
    """The same with the generator's other loss, which has a gradient where it loses (sec. 3)."""

    kind: Literal["non_saturating"]
    r1_weight: Weight = 0.0
    """Weight of the squared norm of the discriminator's gradient at real clips (arXiv:1801.04406, eq. 9)."""
    r1_every: PositiveInt = 1
    """That term, a good part of a step's cost, is computed in one of so many steps and weighs so many times
    as much there (arXiv:1912.04958, sec. 3.1)."""


class WassersteinLoss(Section):
    """Wasserstein distance with a gradient penalty (arXiv:1704.00028)."""

    kind: Literal["wgan_gp"]
    gradient_weight: Weight = 10.0
    """Weight of the penalty on gradients whose norm is not 1."""
    drift_weight: Weight = 0.0
    """Weight of the squared verdicts on real clips, which keeps them near 0 (arXiv:1710.10196, app. A.1)."""


class HingeLoss(Section):
    """Hinge losses (arXiv:1705.02894)."""

    kind: Literal["hinge"]
    r1_weight: Weight = 0.0
    """Weight of the squared norm of the discriminator's gradient at real clips (arXiv:1801.04406, eq. 9)."""
    r1_every: PositiveInt = 1
    """That term, a good part of a step's cost, is computed in one of so many steps and weighs so many times
    as much there (arXiv:1912.04958, sec. 3.1)."""


GanLoss = Annotated[
    MinimaxLoss | NonSaturatingLoss | WassersteinLoss | HingeLoss, Field(discriminator="kind")
]

# ---------------------------------------------------------------------------------------------------- models

ConditionedBy = Literal["heads", "projection"]
"""How a discriminator makes a generator do what it is told."""


class CollapseWatch(Section):
    """Noticing that a generator has collapsed: to silence, to clicks, or to one sound."""

    stop: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """End a run that has collapsed, with the checkpoint from before, instead of only saying so."""
    silence_db: Annotated[float, Field(lt=0.0), NOT_BOOL] = -40.0
    """Clips are silent that are this far below the corpus' root mean square."""
    least_diversity: Fraction = 0.1
    """Clips are all alike when they differ by less than this share of what real ones do."""


class GanSection(Section):
    """What every adversarial model is asked."""

    kind: str  # stands here so that it comes first
    representation: Representation
    """What is made."""
    loss: GanLoss
    """The game that is played."""
    conditions: list[str] = Field(default=[])
    """Label columns of the corpus that the generator is told as one value of those that occur, and the
    discriminator has to recognise."""
    conditioned_by: ConditionedBy = "heads"
    """How the discriminator makes the generator do what it is told. heads: it recognises what real clips are
    told, and the generator has to be recognised (arXiv:1610.09585). projection: of labels and tokens it
    judges a clip as one of which they are true, so what recognises real clips and is satisfied by others does
    not last (arXiv:1802.05637); numbers have heads."""
    head_weight: Weight = 10.0
    """Weight of heads, beside the verdict."""
    discriminator_steps: PositiveInt = 1
    """Steps of the discriminator for each of the generator. `train.steps` counts the discriminator's."""
    discriminator_lr: PositiveFloat | None = None
    """Peak learning rate of the discriminator; null: `train.lr`."""
    collapse: CollapseWatch = CollapseWatch()
    """When a run counts as collapsed."""

    @property
    def uses_codec(self) -> bool:
        """Whether the representation is a codec's latents."""
        return isinstance(self.representation, LatentImage)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        twice = next((name for name in self.conditions if self.conditions.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the condition '{twice}' is named twice")
        return self


class WaveGanModel(GanSection):
    """WaveGAN (arXiv:1802.04208): transposed convolutions from noise to samples."""

    kind: Literal["wavegan"]
    representation: WaveformImage = WaveformImage(kind="waveform")
    """What is made."""
    loss: GanLoss = WassersteinLoss(kind="wgan_gp")
    """The game that is played."""
    noise_dim: PositiveInt = 100
    """Numbers that a clip is made of, uniform between -1 and 1."""
    channels: PositiveInt = 64
    """Channels before the last layer of the generator, and after the first of the discriminator; doubled at
    each layer on the way in. The paper's d."""
    kernel: Annotated[int, Field(ge=1), NOT_BOOL] = 25
    """Samples that a convolution sees."""
    stride: Annotated[int, Field(ge=2), NOT_BOOL] = 4
    """Factor in time of each layer."""
    num_layers: PositiveInt = 5
    """Layers; clips are a multiple of stride to this power samples long."""
    phase_shuffle: Annotated[int, Field(ge=0), NOT_BOOL] = 2
    """Samples, at most, by which each layer of the discriminator but the last shifts its output; 0: none."""
    post_filter: Annotated[int, Field(ge=0), NOT_BOOL] = 0
    """Length of a filter that the generator learns for its output; the paper's has 512. 0: none."""
    discriminator_steps: PositiveInt = 5
    """Steps of the discriminator for each of the generator. `train.steps` counts the discriminator's."""


class SpecGanModel(GanSection):
    """SpecGAN (arXiv:1802.04208): transposed convolutions from noise to a spectrogram."""

    kind: Literal["specgan"]
    representation: LogMagnitudeImage = LogMagnitudeImage(kind="log_magnitude")
    """What is made."""
    loss: GanLoss = WassersteinLoss(kind="wgan_gp")
    """The game that is played."""
    noise_dim: PositiveInt = 100
    """Numbers that a clip is made of, uniform between -1 and 1."""
    channels: PositiveInt = 64
    """Channels before the last layer of the generator, and after the first of the discriminator; doubled at
    each layer on the way in. The paper's d."""
    num_layers: PositiveInt = 5
    """Layers, each of which doubles both sides; frequencies and frames are multiples of 2 to this power."""
    discriminator_steps: PositiveInt = 5
    """Steps of the discriminator for each of the generator. `train.steps` counts the discriminator's."""


class ProgressiveSection(GanSection):
    """What every progressively growing network is asked (arXiv:1710.10196)."""

    loss: GanLoss = WassersteinLoss(kind="wgan_gp", drift_weight=1e-3)
    """The game that is played."""
    noise_dim: PositiveInt = 256
    """Numbers that a clip is made of, normally distributed."""
    channels: list[PositiveInt] = Field(default=[256, 256, 256, 256, 128, 64, 32], min_length=1)
    """Channels at each resolution, the lowest first; each has twice the frequencies and frames of the one
    before."""
    images_per_phase: PositiveInt = 800_000
    """Real clips seen while a new resolution fades in, and as many after it has."""


class GanSynthModel(ProgressiveSection):
    """GANSynth (arXiv:1902.08710): notes of a pitch, as instantaneous frequencies on the mel scale."""

    kind: Literal["gansynth"]
    conditions: list[str] = Field(default=["pitch"])
    """Label columns of the corpus that the generator is told as one value of those that occur, and the
    discriminator has to recognise."""
    representation: InstantaneousFrequencyImage = InstantaneousFrequencyImage(
        kind="instantaneous_frequency", num_mels=1024
    )
    """What is made."""


class DrumGanModel(ProgressiveSection):
    """DrumGAN (arXiv:2008.12073): clips with asked features of timbre, in the paper as complex spectra."""

    kind: Literal["drumgan"]
    representation: Annotated[ComplexImage | InstantaneousFrequencyImage, Field(discriminator="kind")] = (
        ComplexImage(kind="complex")
    )
    """What is made."""
    noise_dim: PositiveInt = 128
    """Numbers that a clip is made of, normally distributed."""
    descriptors: list[
        Literal["boominess", "brightness", "depth", "hardness", "roughness", "sharpness", "warmth"]
    ] = Field(
        default=["boominess", "brightness", "depth", "hardness", "roughness", "sharpness", "warmth"],
        min_length=1,
    )
    """Features of timbre that the generator is told as numbers from 0 to 1, and the discriminator has to
    estimate. See `gan/conditions/descriptors.py`."""


class Teacher(Section):
    """The classifier whose opinions DarkGAN is told."""

    source: str | None = None
    """An audio classifier of `transformers`, a hub id or a folder; null: a small one is trained on the
    corpus' own labels."""
    source_revision: str | None = None
    """Commit or tag on the Hub."""
    label: str = "instrument_family"
    """Without `source`: the label column that it is trained to recognise."""
    steps: PositiveInt = 400
    """Without `source`: training steps."""
    temperature: PositiveFloat = 3.0
    """Logits are divided by this before they become shares."""


class DarkGanModel(ProgressiveSection):
    """DarkGAN (arXiv:2108.01216): GANSynth's notes with a teacher's soft labels as attributes."""

    kind: Literal["darkgan"]
    conditions: list[str] = Field(default=["pitch"])
    """Label columns of the corpus that the generator is told as one value of those that occur, and the
    discriminator has to recognise."""
    representation: InstantaneousFrequencyImage = InstantaneousFrequencyImage(kind="instantaneous_frequency")
    """What is made."""
    teacher: Teacher = Teacher()
    """Who says how much of what a clip is."""


class VqcpcEncoder(Section):
    """The encoder by contrastive predictive coding whose tokens VQCPC-GAN follows."""

    num_tokens: PositiveInt = 16
    """Entries of the codebook."""
    dim: PositiveInt = 32
    """Width of a frame."""
    num_mels: PositiveInt = 64
    """Bands of the spectrogram that it hears."""
    predicted_steps: PositiveInt = 5
    """Frames ahead that are predicted."""
    num_negatives: PositiveInt = 16
    """Wrong frames, of the same clip, that the right one has to be told from."""
    steps: PositiveInt = 500
    """Training steps."""


class VqcpcGanModel(GanSection):
    """VQCPC-GAN (arXiv:2105.01531): clips of any length that follow a sequence of tokens."""

    kind: Literal["vqcpc_gan"]
    conditions: list[str] = Field(default=["pitch"])
    """Label columns of the corpus that the generator is told as one value of those that occur, and the
    discriminator has to recognise."""
    representation: InstantaneousFrequencyImage = InstantaneousFrequencyImage(kind="instantaneous_frequency")
    """What is made."""
    loss: GanLoss = WassersteinLoss(kind="wgan_gp", drift_weight=1e-3)
    """The game that is played."""
    noise_dim: PositiveInt = 128
    """Numbers that a clip is made of, normally distributed, alike in all frames."""
    channels: list[PositiveInt] = Field(default=[256, 256, 128, 128, 64, 32], min_length=1)
    """Channels at each resolution in frequency, the lowest first; each has twice the frequencies of the one
    before. All have all frames."""
    local_frames: PositiveInt = 8
    """Frames that the local discriminator sees at once."""
    encoder: VqcpcEncoder = VqcpcEncoder()
    """Who says which token a frame is."""


class MusikaModel(GanSection):
    """Musika (arXiv:2208.08706): latents of a codec along coordinates, without an end."""

    kind: Literal["musika"]
    representation: LatentImage = LatentImage(kind="latents")
    """What is made."""
    loss: GanLoss = HingeLoss(kind="hinge", r1_weight=1.0)
    """The game that is played."""
    coordinate_dim: PositiveInt = 64
    """Numbers of a coordinate; between two anchors they are interpolated."""
    style_dim: PositiveInt = 64
    """Numbers that are alike in all frames of a clip."""
    anchor_frames: PositiveInt = 64
    """Frames between two anchors."""
    channels: list[PositiveInt] = Field(default=[512, 512, 256, 256], min_length=1)
    """Channels at each resolution in time, the lowest first; each has twice the frames of the one before."""


GanModelSection = Annotated[
    WaveGanModel | SpecGanModel | GanSynthModel | DrumGanModel | DarkGanModel | VqcpcGanModel | MusikaModel,
    Field(discriminator="kind"),
]

GAN_KINDS = ("wavegan", "specgan", "gansynth", "drumgan", "darkgan", "vqcpc_gan", "musika")
"""The kinds of the sections above."""
