"""The section `codec` of a recipe: each family and its settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .sections import PositiveFloat, PositiveInt, Section


class PocketCodec(Section):
    """The codec that ships with Tokkata: 16 kHz mono, 50 frames/s, 8 codebooks of 1024."""

    kind: Literal["pocket"]
    stereo: bool = False
    """Encode left and right apart, as twice the codebooks."""


class PocketVaeCodec(Section):
    """The autoencoder that ships with Tokkata: 16 kHz mono, 50 frames/s of 32 latents, but no codes."""

    kind: Literal["pocket_vae"]


class EncodecCodec(Section):
    """EnCodec (arXiv:2210.13438) in its `transformers` port."""

    kind: Literal["encodec"]
    id: str
    """Hub id such as `facebook/encodec_32khz`, or a local folder in the hub's layout."""
    revision: str | None = None
    """Commit or tag on the Hub; pin it, revisions have changed numerics before."""
    bandwidth_kbps: PositiveFloat
    """Target bandwidth; it decides how many codebooks are used, so there is no default."""
    stereo: bool = False
    """Encode left and right apart with a mono codec, as twice the codebooks."""


class DacCodec(Section):
    """Descript Audio Codec (arXiv:2306.06546) in its `transformers` port."""

    kind: Literal["dac"]
    id: str
    """Hub id such as `descript/dac_44khz`, or a local folder in the hub's layout."""
    revision: str | None = None
    """Commit or tag on the Hub; pin it, revisions have changed numerics before."""
    num_codebooks: PositiveInt
    """How many of the codec's codebooks to keep, coarsest first."""
    stereo: bool = False
    """Encode left and right apart with a mono codec, as twice the codebooks."""


class OriginalEncodecCodec(Section):
    """EnCodec (arXiv:2210.13438) in the package `encodec` of its authors."""

    kind: Literal["encodec_original"]
    id: Literal["encodec:24khz", "encodec:48khz"]
    """Which of the two models."""
    bandwidth_kbps: PositiveFloat
    """Target bandwidth; it decides how many codebooks are used, so there is no default."""


class OriginalDacCodec(Section):
    """Descript Audio Codec (arXiv:2306.06546) in the package `descript-audio-codec` of its authors."""

    kind: Literal["dac_original"]
    id: Literal["dac:16khz", "dac:24khz", "dac:44khz"]
    """Which of the three models."""
    num_codebooks: PositiveInt
    """How many of the codec's codebooks to keep, coarsest first."""
    stereo: bool = False
    """Encode left and right apart with a mono codec, as twice the codebooks."""


class MimiCodec(Section):
    """Mimi (arXiv:2410.00037) in its `transformers` port."""

    kind: Literal["mimi"]
    id: str
    """Hub id such as `kyutai/mimi`, or a local folder in the hub's layout."""
    revision: str | None = None
    """Commit or tag on the Hub; pin it, revisions have changed numerics before."""
    num_codebooks: PositiveInt
    """How many of the codec's codebooks to keep, the semantic one first, then coarsest first."""
    stereo: bool = False
    """Encode left and right apart with a mono codec, as twice the codebooks."""


class XcodecCodec(Section):
    """X-Codec (arXiv:2408.17175) in its `transformers` port."""

    kind: Literal["xcodec"]
    id: str
    """Hub id such as `hf-audio/xcodec-hubert-general`, or a local folder in the hub's layout."""
    revision: str | None = None
    """Commit or tag on the Hub; pin it, revisions have changed numerics before."""
    bandwidth_kbps: PositiveFloat
    """Target bandwidth; it decides how many codebooks are used, so there is no default."""
    stereo: bool = False
    """Encode left and right apart with a mono codec, as twice the codebooks."""


class OobleckCodec(Section):
    """Oobleck (arXiv:2407.14358), a variational autoencoder: latents, but no codes."""

    kind: Literal["oobleck"]
    id: str
    """Hub id such as `stabilityai/stable-audio-open-1.0`, or a local folder in the hub's layout."""
    revision: str | None = None
    """Commit or tag on the Hub; pin it, revisions have changed numerics before."""
    subfolder: str | None = None
    """Folder of the repository that holds the autoencoder; null: its root, or `vae` where the root has no
    config.json, as in a diffusion pipeline."""


class WaveformCodec(Section):
    """One code of 256 a sample, without a network, for models of single samples."""

    kind: Literal["mulaw", "linear"]
    sample_rate_hz: PositiveInt
    """Sample rate of the audio, and so the frame rate."""
    stereo: bool = False
    """Encode left and right apart, as two codebooks."""


Codec = Annotated[
    PocketCodec
    | PocketVaeCodec
    | EncodecCodec
    | DacCodec
    | OriginalEncodecCodec
    | OriginalDacCodec
    | MimiCodec
    | XcodecCodec
    | OobleckCodec
    | WaveformCodec,
    Field(discriminator="kind"),
]
