"""The codecs that a recipe can train; part of `schema.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .sections import NOT_BOOL, Fraction, PositiveFloat, PositiveInt, Section


class TrainedCodec(Section):
    """What every codec to train is asked."""

    kind: str
    sample_rate_hz: PositiveInt = 16000
    """Sample rate of the audio."""


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
