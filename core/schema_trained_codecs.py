"""The codecs that a recipe can train; part of `schema.py`."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .sections import NOT_BOOL, Fraction, PositiveFloat, PositiveInt, Section

Weight = Annotated[float, Field(ge=0.0), NOT_BOOL]


class Adversarial(Section):
    """Discriminators that learn to tell decoded audio from real audio, and the codec to deceive them."""

    weight: Weight = 1.0
    """Weight of the adversarial term in the codec's loss."""
    feature_weight: Weight = 2.0
    """Weight of the distance of the discriminators' features."""
    start_step: Annotated[int, Field(ge=0), NOT_BOOL] = 0
    """Steps before discriminators are trained and listened to."""
    periods: list[Annotated[int, Field(ge=2), NOT_BOOL]] = Field(default=[2, 3, 5, 7, 11])
    """A multi-period discriminator for each, in samples; they have 8.2 million parameters each."""
    fft_sizes: list[Annotated[int, Field(ge=16, multiple_of=4), NOT_BOOL]] = Field(default=[2048, 1024, 512])
    """A multi-band spectrogram discriminator for each, windows in samples; 0.1 million parameters a band."""
    bands: list[tuple[Fraction, Fraction]] = Field(
        default=[(0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)], min_length=1
    )
    """Where each band begins and ends, as shares of half the sample rate."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate of the discriminators; its course is that of `train.lr`."""
    betas: tuple[Fraction, Fraction] = (0.8, 0.99)
    """AdamW's decay rates for the discriminators."""
    clip_grad_norm: PositiveFloat = 10.0
    """Gradients of the discriminators are scaled down to this norm."""
    precision: Literal["as_codec", "bf16"] = "as_codec"
    """`bf16`: discriminators compute in bfloat16, whatever `train.precision` lets the codec do. A codec whose
    noise is to be faint needs float32; its discriminators do not."""

    @model_validator(mode="after")
    def _check_discriminators(self) -> Self:
        if not self.periods and not self.fft_sizes:
            raise ValueError("periods and fft_sizes are both empty: name at least one discriminator")
        for size in self.fft_sizes:
            bins = size // 2 + 1
            empty = next((band for band in self.bands if int(band[0] * bins) >= int(band[1] * bins)), None)
            if empty is not None:
                raise ValueError(f"the band {list(empty)} has no frequencies in a window of {size} samples")
        return self


class TrainedCodec(Section):
    """What every codec to train is asked."""

    kind: str
    sample_rate_hz: PositiveInt = 16000
    """Sample rate of the audio."""
    adversarial: Adversarial | None = None
    """Adversarial training; null: none."""


class DeadCodes(Section):
    """Replacing entries of the codebooks that are hardly used by what the encoder made of a random frame."""

    below: Annotated[float, Field(gt=0.0, lt=1.0), NOT_BOOL] = 0.05
    """An entry is dead when it is used less than this share of what an even use would be."""
    decay: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] = 0.99
    """Decay, a step, of the moving average that its use is judged by."""


class Balancer(Section):
    """The loss balancer of EnCodec (arXiv:2210.13438, sec. 3.4): a term's weight is its share of the gradient
    at the decoder's output, whatever its scale. Codebook and commitment terms are not balanced."""

    decay: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] = 0.999
    """Decay, a step, of the moving averages of the gradients' norms."""
    norm: PositiveFloat = 1.0
    """What the norms of a clip's balanced gradients add up to."""


class ReconstructingCodec(TrainedCodec):
    """What every codec is asked that is trained to decode to the audio that it was given."""

    mel_windows: list[Annotated[int, Field(ge=16, multiple_of=4), NOT_BOOL]] = Field(
        default=[64, 128, 256, 512, 1024], min_length=1
    )
    """Windows of the multi-scale log-mel distance, in samples."""
    mel_bins: list[PositiveInt] = Field(default=[10, 20, 40, 80, 160], min_length=1)
    """Mel bands of each window."""
    mel_floor: PositiveFloat = 1e-2
    """Mel magnitudes below this count as this: what nobody hears must not rule the loss (a full-scale
    sine has a magnitude of a quarter of the window's length)."""
    mel_floor_end: PositiveFloat | None = None
    """Where the floor has fallen to, exponentially, by the last step; null: it stays."""
    mel_weight: Weight = 15.0
    """Weight of the multi-scale log-mel distance."""
    stft_windows: list[Annotated[int, Field(ge=16, multiple_of=4), NOT_BOOL]] = Field(
        default=[2048, 512], min_length=1
    )
    """Windows of the multi-scale STFT distance, in samples."""
    stft_weight: Weight = 0.0
    """Weight of the multi-scale STFT distance, of magnitudes and log-magnitudes."""
    waveform_weight: Weight = 10.0
    """Weight of the waveform's mean absolute error relative to the mean absolute amplitude of the corpus."""
    store: Literal["float32", "float16"] = "float32"
    """Number format of the saved weights; float16 halves the file, and it is loaded as float32."""

    @model_validator(mode="after")
    def _check_scales(self) -> Self:
        if len(self.mel_windows) != len(self.mel_bins):
            raise ValueError(
                f"mel_bins {self.mel_bins} needs one number for each of the"
                f" {len(self.mel_windows)} mel_windows"
            )
        return self


class RvqModel(ReconstructingCodec):
    """What every codec with residual vector quantisation is asked."""

    source: str | None = None
    """A codec of the same kind whose weights training begins from: `pocket`, a folder or a hub id. Its shape
    is then not given here; `sample_rate_hz` must be its own."""
    source_revision: str | None = None
    """Commit or tag on the Hub."""
    refit_codebooks: bool = False
    """Find the codebooks of the source anew before training: by k-means of what its encoder makes of up to 20
    minutes of crops of the training clips, such that they are used evenly."""
    commitment_weight: Weight = 1.0
    """Weight of the term that moves the encoder's output towards codebook entries."""
    balancer: Balancer | None = None
    """Balance the terms of the decoded audio by their gradients; null: weights are factors."""
    dead_codes: DeadCodes | None = DeadCodes()
    """Replacing dead entries of the codebooks; null: they stay dead."""

    shape_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that a source decides."""

    @model_validator(mode="after")
    def _check_spectra(self) -> Self:
        if not self.mel_weight and not self.stft_weight:
            raise ValueError("mel_weight and stft_weight are both 0: give one of them a weight")
        return self

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.source is None:
            if self.source_revision is not None:
                raise ValueError("source_revision belongs to source, which is not given")
            if self.refit_codebooks:
                raise ValueError("refit_codebooks is about those of source, which is not given")
            return self
        given = next((name for name in self.shape_settings if name in self.model_fields_set), None)
        if given is not None:
            raise ValueError(f"{given} is that of source {self.source}: remove it")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_inherited(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Defaults that other settings take the place of are no settings of a resolved recipe."""
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name not in self._settings_without_effect()}

    def _settings_without_effect(self) -> tuple[str, ...]:
        return self.shape_settings if self.source is not None else ()


class DacModel(RvqModel):
    """A Descript Audio Codec to train: residual vector quantisation over a convolutional autoencoder."""

    kind: Literal["dac"]
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
    start: Literal["lapped", "kmeans", "random"] = "lapped"
    """Initial weights: those of a lapped transform with examples of its coefficients in the codebooks, from
    which short trainings learn; random ones with codebooks found by k-means; or random ones."""
    quantizer_dropout: Fraction = 0.25
    """Share of clips in a batch for which only a random number of the codebooks is used."""
    codebook_decay: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] | None = None
    """Decay, a step, of the moving averages of what they stand for that the entries are, as EnCodec's; null:
    they learn by gradient, as the published DAC's."""
    codebook_weight: Weight = 1.0
    """Weight of the term that moves codebook entries towards the encoder's output by gradient."""
    codebook_lr_scale: PositiveFloat = 10.0
    """Learning rate of the codebooks, as a multiple of `train.lr`: an entry is met in few steps only, and
    would fall behind an encoder that learns in all."""

    shape_settings: ClassVar[tuple[str, ...]] = (
        "encoder_dim",
        "encoder_rates",
        "decoder_dim",
        "num_codebooks",
        "codebook_size",
        "codebook_dim",
        "start",
    )

    _gradient_settings: ClassVar[tuple[str, ...]] = ("codebook_weight", "codebook_lr_scale")

    @model_validator(mode="after")
    def _check_codebooks(self) -> Self:
        given = next((name for name in self._gradient_settings if name in self.model_fields_set), None)
        if self.codebook_decay is not None and given is not None:
            raise ValueError(
                f"{given} is about entries that learn by gradient, and with codebook_decay they are averages:"
                " remove one of the two"
            )
        return self

    def _settings_without_effect(self) -> tuple[str, ...]:
        without_effect = super()._settings_without_effect()
        return without_effect if self.codebook_decay is None else (*without_effect, *self._gradient_settings)


class EncodecModel(RvqModel):
    """An EnCodec to train (arXiv:2210.13438): residual vector quantisation over convolutions and LSTMs. Its
    codebooks follow what they stand for as moving averages; there is no factorised lookup."""

    kind: Literal["encodec"]
    sample_rate_hz: PositiveInt = 24000
    """Sample rate of the audio."""
    num_filters: PositiveInt = 32
    """Channels after the first convolution; doubled at each stride."""
    upsampling_ratios: list[PositiveInt] = Field(default=[8, 5, 4, 2], min_length=1)
    """Strides of the decoder, mirrored by the encoder; their product is the hop length in samples."""
    num_residual_layers: PositiveInt = 1
    """Residual blocks before each stride."""
    num_lstm_layers: PositiveInt = 2
    """Layers of the LSTMs of encoder and decoder."""
    hidden_size: PositiveInt = 128
    """Width of a frame, and of the codebooks' entries."""
    causal: bool = True
    """Whether nothing depends on audio that is still to come."""
    codebook_size: Annotated[int, Field(ge=2), NOT_BOOL] = 1024
    """Entries of each codebook, a power of 2."""
    bandwidths_kbps: list[PositiveFloat] = Field(default=[1.5, 3.0, 6.0, 12.0, 24.0], min_length=1)
    """Bitrates that it can be used at, from the lowest to the highest, which decides how many codebooks there
    are. In training every clip is coded at one of them, drawn evenly."""
    codebook_decay: Annotated[float, Field(ge=0.0, lt=1.0), NOT_BOOL] = 0.99
    """Decay, a step, of the moving averages that are the entries."""

    shape_settings: ClassVar[tuple[str, ...]] = (
        "num_filters",
        "upsampling_ratios",
        "num_residual_layers",
        "num_lstm_layers",
        "hidden_size",
        "causal",
        "codebook_size",
        "bandwidths_kbps",
    )

    @model_validator(mode="after")
    def _check_bandwidths(self) -> Self:
        if self.source is not None:
            return self
        bits = math.log2(self.codebook_size)
        if bits % 1:
            raise ValueError(f"codebook_size {self.codebook_size} is no power of 2")
        frame_rate_hz = math.ceil(self.sample_rate_hz / math.prod(self.upsampling_ratios))
        bits_per_s = int(bits) * frame_rate_hz  # of a codebook
        counts = [int(1000 * wanted // bits_per_s) for wanted in self.bandwidths_kbps]
        if counts[0] < 1 or counts != sorted(set(counts)):
            raise ValueError(
                f"bandwidths_kbps {self.bandwidths_kbps} must grow by at least one codebook each, which takes"
                f" {bits_per_s / 1000:g} kbit/s: {int(bits)} bits for {frame_rate_hz} frames a second"
            )
        return self


class VaeModel(ReconstructingCodec):
    """A variational autoencoder to train: Oobleck, that of Stable Audio Open (arXiv:2407.14358)."""

    kind: Literal["vae"]
    channels: Literal[1, 2] = 1
    """Channels of the audio."""
    latent_dim: PositiveInt = 32
    """Numbers in a frame of latents; the encoder's first convolution has twice as many channels."""
    encoder_rates: list[PositiveInt] = Field(default=[8, 8, 5], min_length=1)
    """Strides of the encoder, mirrored by the decoder; their product is the hop length in samples."""
    channel_multiples: list[PositiveInt] = Field(default=[1, 2, 4], min_length=1)
    """Channels after each stride, as multiples of those before the first."""
    decoder_dim: PositiveInt = 32
    """Channels at the decoder's end, before the last convolution."""
    start: Literal["transform", "random"] = "transform"
    """Initial weights: a linear transform that keeps the strongest components of the audio, from which short
    trainings learn; or random ones."""
    stft_windows: list[Annotated[int, Field(ge=16, multiple_of=4), NOT_BOOL]] = Field(
        default=[2048, 1024, 512, 256, 128, 64, 32], min_length=1
    )
    """Windows of the multi-scale STFT distance, in samples."""
    waveform_weight: Weight = 1.0
    """Weight of the waveform's mean absolute error relative to the mean absolute amplitude of the corpus."""
    kl_weight: Weight = 1e-3
    """Weight of the Kullback-Leibler divergence of the posterior from N(0, I), in nats a frame."""
    kl_warmup_steps: Annotated[int, Field(ge=0), NOT_BOOL] = 0
    """Steps over which `kl_weight` grows from 0, linearly."""

    @model_validator(mode="after")
    def _check_multiples(self) -> Self:
        if len(self.channel_multiples) != len(self.encoder_rates):
            raise ValueError(
                f"channel_multiples {self.channel_multiples} needs one number for each of the"
                f" {len(self.encoder_rates)} encoder_rates"
            )
        return self


class MelVaeModel(TrainedCodec):
    """The smallest variational autoencoder (arXiv:1312.6114): one vector of latents for the log-mel
    spectrogram of a note of `train.crop_s`, heard through Griffin and Lim's algorithm."""

    kind: Literal["mel_vae"]
    adversarial: None = None
    """Nothing: it is trained without."""
    latent_dim: PositiveInt = 16
    """Numbers that a note becomes."""
    hidden_dim: PositiveInt = 256
    """Width of the two hidden layers of encoder and decoder."""
    num_mels: PositiveInt = 96
    """Bands of the mel spectrogram."""
    window: Annotated[int, Field(ge=64, multiple_of=4), NOT_BOOL] = 2048
    """Window of the spectrogram in samples; windows overlap by three quarters."""
    beta: Weight = 1.0
    """Weight of the divergence from the prior; 1 is the evidence lower bound itself."""
