"""The codecs that a recipe can train; part of `schema.py`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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


class DacModel(TrainedCodec):
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


class VaeModel(TrainedCodec):
    """A variational autoencoder to train: Oobleck, the autoencoder of Stable Audio Open (arXiv:2407.14358)."""

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
    mel_floor: PositiveFloat = 1e-2
    """Mel magnitudes below this count as this: what nobody hears must not rule the loss (a full-scale
    sine has a magnitude of a quarter of the window's length)."""
    mel_weight: Annotated[float, Field(ge=0.0), NOT_BOOL] = 15.0
    """Weight of the multi-scale log-mel distance."""
    stft_weight: Annotated[float, Field(ge=0.0), NOT_BOOL] = 0.0
    """Weight of the multi-resolution STFT loss."""
    waveform_weight: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1.0
    """Weight of the waveform's mean absolute error relative to the mean absolute amplitude."""
    kl_weight: Annotated[float, Field(ge=0.0), NOT_BOOL] = 1e-3
    """Weight of the Kullback-Leibler divergence of the posterior from N(0, I), in nats a frame."""
    kl_warmup_steps: Annotated[int, Field(ge=0), NOT_BOOL] = 0
    """Steps over which `kl_weight` grows from 0, linearly."""
    store: Literal["float32", "float16"] = "float32"
    """Number format of the saved weights; float16 halves the file, and it is loaded as float32."""

    @model_validator(mode="after")
    def _check_multiples(self) -> Self:
        if len(self.channel_multiples) != len(self.encoder_rates):
            raise ValueError(
                f"channel_multiples {self.channel_multiples} needs one number for each of the"
                f" {len(self.encoder_rates)} encoder_rates"
            )
        return self
