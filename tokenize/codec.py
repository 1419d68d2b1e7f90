"""Codecs: audio to discrete codes or continuous latents and back.

Shapes: B batch, C channels, N samples, K codebooks, T frames, S segments, V codebook size, D latent width.
`load_codec` is the way in; each family of codecs is one file in `families/`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import schema_codecs as schema
from ..core.errors import UserError
from ..core.files import write_json
from ..core.hub_cache import not_found
from .chunking import Window, decode_pieces, plan_windows
from .receptive_field import Reach
from .streaming import Parts, checked, fitted, in_windows


@dataclass(frozen=True)
class Chunking:
    """How a clip that is too long for one pass is cut; recorded in `codec.json`.

    A window of `window_frames` frames is encoded as one clip. Except at the clip's real ends, the first
    `warm_up + encoder_context` and the last `encoder_context` of its frames are dropped. Windows overlap by
    that much, and the last one is moved back so that it ends with the clip. Decoding is alike, with
    `decoder_context`.
    """

    exact: bool
    """Whether the result is that of the whole clip, whatever the window."""
    encoder_context: int
    """Frames on each side of a frame that its code depends on, or that the rule grants it."""
    decoder_context: int
    """Frames on each side of a frame that its samples depend on, or that the rule grants it."""
    warm_up: int = 0
    """Frames before this context from which a network that remembers (an LSTM, causal attention) makes its
    state anew."""
    window_frames: int | None = None
    """Length of the windows; only recorded where it decides the codes (`exact` is false)."""


@dataclass(frozen=True)
class Encoded:
    """What a clip, or one window of it, is encoded to."""

    codes: Tensor  # [B, K, T] int64
    gains: Tensor | None  # [B, S] float32, one a segment; None where the codec scales none


@dataclass(frozen=True)
class CodecInfo:
    """What anyone who holds tokens must know of the codec that made them; stored as `codec.json`."""

    id: str
    """What `load_codec` takes: `pocket`, `pocket_vae`, `dac:44khz`, a hub id, or a folder."""
    revision: str | None
    """Commit on the Hub; for a folder or a file, the start of the weights' sha256. None where the codec has
    no weights, or where whoever named it has not said: a MusicGen does not."""
    sample_rate: int
    """Hz."""
    channels: int
    hop_length: int
    """Samples a frame."""
    frame_rate: float
    """Frames a second."""
    num_codebooks: int
    codebook_size: int
    latent_dim: int
    versions: dict[str, str]
    """Libraries whose numerics the codes depend on."""
    bandwidth_kbps: float | None = None
    """What was chosen for a codec that is told its bandwidth instead of a number of codebooks."""
    subfolder: str | None = None
    """Folder of the hub's repository that holds the codec, if not its root."""
    stereo: bool = False
    """Whether a mono codec encodes left and right apart; `num_codebooks` and `latent_dim` count both."""
    chunking: Chunking | None = None
    """How long clips were cut; None before a store has been made with the codec."""
    precision: str = "fp32"
    """Arithmetic that the codes were made with."""
    latents: str | None = None
    """`latents` or `projected_latents` where those are stored, not codes."""
    latent_mean: list[float] | None = None  # [D]
    """Mean of the stored latents over the training split, each of the D dimensions alone."""
    latent_std: list[float] | None = None  # [D]
    """Their standard deviation."""
    median_gain: float | None = None
    """For codecs that scale segments: the median gain, which generated codes are decoded with."""

    @property
    def bitrate_kbps(self) -> float:
        """Of the codes as they are, nothing counted for how evenly they are used; 0 where there are none."""
        if not self.num_codebooks:
            return 0.0
        return self.frame_rate * self.num_codebooks * math.log2(self.codebook_size) / 1000

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; raises `UserError` if it is something else."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} does not describe a codec: {error}") from error
        return cls.from_json(values, str(path))

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Self:
        """From the values in a `codec.json`; raises `UserError`, which begins with `where`, for others."""
        try:
            chunking = values.get("chunking")
            return cls(**{**values, "chunking": None if chunking is None else Chunking(**chunking)})
        except (TypeError, AttributeError) as error:
            raise UserError(f"{where} does not describe a codec: {error}") from error

    def check_matches(self, other: CodecInfo, where: str) -> None:
        """Raise `UserError` if codes of `other` mean something else than codes of this codec."""
        for name in (
            "id",
            "revision",
            "subfolder",
            "stereo",
            "sample_rate",
            "hop_length",
            "num_codebooks",
            "codebook_size",
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and not (name == "revision" and mine is None):
                raise UserError(f"{where}: codec {name} is {theirs}, but {mine} is needed")


class Codec(nn.Module, ABC):
    """A neural codec with frozen weights; always float32, because lower precision changes codes."""

    def __init__(self, info: CodecInfo) -> None:
        super().__init__()
        self.info = info

    sample_rate = property(lambda self: self.info.sample_rate)
    channels = property(lambda self: self.info.channels)
    hop_length = property(lambda self: self.info.hop_length)
    frame_rate = property(lambda self: self.info.frame_rate)
    num_codebooks = property(lambda self: self.info.num_codebooks)
    codebook_size = property(lambda self: self.info.codebook_size)
    latent_dim = property(lambda self: self.info.latent_dim)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def has_gains(self) -> bool:
        """Whether audio is scaled before it is encoded, so that codes alone do not tell how loud it was."""
        return False

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of `num_samples`; the last one may be partly padding."""
        return math.ceil(num_samples / self.info.hop_length)

    def num_samples(self, num_frames: int) -> int:
        """Samples of the longest clip that has `num_frames` frames."""
        return num_frames * self.info.hop_length

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio `[B, C, N]` to codes `[B, K, T]`, int64, T = ceil(N / hop_length)."""
        return self._encode(self._prepare(audio)).contiguous()

    def encode_segments(self, audio: Tensor) -> Encoded:
        """As `encode`, with the gains that `decode` needs to give audio its loudness back."""
        return Encoded(self.encode(audio), None)

    def encode_window(self, audio: Tensor) -> Encoded:
        """As `encode_segments`, of the samples `[B, C, N]` of one of the windows of `plan`.

        The codes of a clip are the frames that its windows keep, and its gains are theirs, in order.
        """
        return self.encode_segments(audio)

    @torch.no_grad()
    def decode(self, codes: Tensor, num_samples: int | None = None, gains: Tensor | None = None) -> Tensor:
        """Codes `[B, K, T]` to audio `[B, C, num_samples]`; `num_samples(T)` samples if not told.

        `gains` are those of `encode_segments`, `[B, S]`, for a codec that has gains: without them, every
        segment gets `info.median_gain`. Raises `ValueError` if that is not set, and for gains without a use.
        """
        self._check_codes(codes)
        self._refuse_gains(gains)
        return self._fit(self._decode(codes), codes.shape[-1], num_samples)

    def encode_beginning(self, audio: Tensor) -> Tensor:
        """Codes `[B, K, t]` of audio `[B, C, N]` that a longer clip can begin with: of whole frames alone.

        A frame that is partly padding is left out, unless it is the only one.
        """
        hop_length = self.info.hop_length
        return self.encode(audio[..., : max(hop_length, audio.shape[-1] // hop_length * hop_length)])

    def reconstruct(self, audio: Tensor) -> Tensor:
        """Audio `[B, C, N]` to codes and back, with its gains where the codec has any."""
        encoded = self.encode_segments(audio)
        return self.decode(encoded.codes, audio.shape[-1], encoded.gains)

    @torch.no_grad()
    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio `[B, C, N]` to the encoder's output before quantisation, `[B, D, T]`."""
        return self._encode_latents(self._prepare(audio))

    @torch.no_grad()
    def decode_latents(
        self, latents: Tensor, num_samples: int | None = None, gains: Tensor | None = None
    ) -> Tensor:
        """Latents `[B, D, T]` to audio `[B, C, num_samples]`, without quantisation; gains as in `decode`."""
        self._refuse_gains(gains)
        return self._fit(self._decode_latents(latents), latents.shape[-1], num_samples)

    @property
    @abstractmethod
    def chunking(self) -> Chunking:
        """How long clips are cut: so that windows give the codes of the whole clip, or nearly so."""

    def plan(self, num_samples: int, window_frames: int) -> list[Window]:
        """The windows that a clip of `num_samples` is encoded in, `window_frames` long where it is longer."""
        chunking = self.chunking
        return plan_windows(
            num_samples, self.info.hop_length, window_frames, chunking.encoder_context, chunking.warm_up
        )

    def decode_windows(
        self, codes: Tensor, num_samples: int, window_frames: int, gains: Tensor | None = None
    ) -> Iterator[np.ndarray]:
        """Codes `[K, T]` to audio `[C, n]`, piece after piece; see `chunking.decode_long`."""
        self._refuse_gains(gains)
        return decode_pieces(self, self.decode, codes, num_samples, window_frames)

    @torch.no_grad()
    def decode_stream(
        self, codes: Iterable[Tensor], num_frames: int, num_samples: int | None = None
    ) -> Iterator[Tensor]:
        """Codes that come in parts `[B, K, t]` to audio in parts `[B, C, n]`, as soon as it is certain.

        Together they are what `decode` makes of all `num_frames` frames, to the rounding of float32. Held is
        what the next part needs. Raises `ValueError` if other numbers of frames come.
        """
        parts = (part.to(self.device) for part in checked(codes, num_frames))
        wanted = self.num_samples(num_frames) if num_samples is None else num_samples
        yield from fitted(self._decode_stream(parts, num_frames), wanted)

    def _decode_stream(self, codes: Parts, num_frames: int) -> Iterator[Tensor]:
        """For decoders that remember nothing: others say how they go on."""
        context = self.chunking.decoder_context
        reach = Reach(before=context, after=context)
        return in_windows(codes, self._decode, self.info.hop_length, reach, num_frames)

    def _check_audio(self, audio: Tensor) -> None:
        if audio.ndim != 3 or audio.shape[1] != self.info.channels:
            raise ValueError(f"audio [B, {self.info.channels}, N] expected, not {list(audio.shape)}")

    def _check_codes(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.shape[1] != self.info.num_codebooks:
            raise ValueError(f"codes [B, {self.info.num_codebooks}, T] expected, not {list(codes.shape)}")

    def _refuse_gains(self, gains: Tensor | None) -> None:
        if gains is not None:
            raise ValueError(f"codec {self.info.id} scales no segments: it takes no gains")

    def _prepare(self, audio: Tensor) -> Tensor:
        self._check_audio(audio)
        # Codecs floor the number of frames in different ways: a whole number of hops leaves no choice.
        return F.pad(audio.float(), (0, -audio.shape[-1] % self.info.hop_length))

    def _fit(self, audio: Tensor, num_frames: int, num_samples: int | None) -> Tensor:
        # Decoders with odd strides come out a few samples short.
        wanted = self.num_samples(num_frames) if num_samples is None else num_samples
        return F.pad(audio, (0, max(0, wanted - audio.shape[-1])))[..., :wanted]

    @abstractmethod
    def _encode(self, audio: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode(self, codes: Tensor) -> Tensor: ...

    @abstractmethod
    def _encode_latents(self, audio: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode_latents(self, latents: Tensor) -> Tensor: ...


def load_codec(
    id: str,
    *,
    revision: str | None = None,
    num_codebooks: int | None = None,
    bandwidth_kbps: float | None = None,
    subfolder: str | None = None,
    stereo: bool = False,
    family: str | None = None,
    device: str | torch.device = "cpu",
) -> Codec:
    """Load a codec by name.

    Args:
        id: `pocket` or `pocket_vae` (they ship with Tokkata), `mulaw:RATE` or `linear:RATE` (a code a
            sample), `encodec:24khz`, `encodec:48khz`, `dac:16khz`, `dac:24khz` or `dac:44khz` (the original
            packages), a hub id such as `facebook/encodec_32khz`, `descript/dac_44khz`, `kyutai/mimi`,
            `hf-audio/xcodec-hubert-general` or `stabilityai/stable-audio-open-1.0`, or a local folder in the
            hub's layout.
        revision: commit or tag on the Hub; what its cache holds, or else the newest, if not told.
        num_codebooks: for DAC and Mimi: how many codebooks to keep, coarsest first; all if not told.
        bandwidth_kbps: for EnCodec and X-Codec: needed where the model has more than one bandwidth.
        subfolder: folder of the repository that holds the codec; if not told its root, or `vae` where a
            diffusion pipeline has its autoencoder.
        stereo: encode left and right apart with a mono codec, as 2K codebooks (`families/codec_stereo.py`).
        family: what a codec in the hub's layout must be, such as `dac`; any if not told.
        device: where the weights go.

    Raises `UserError` if the codec cannot be found, is of an unknown family, or lacks a setting.
    """
    from .codec_hub import check_settings, load_from_hub
    from .families.codec_original import is_original_id, load_original
    from .families.codec_stereo import Stereo
    from .families.codec_waveform import is_waveform_id, load_waveform

    codec: Codec
    settings = {"num_codebooks": num_codebooks, "bandwidth_kbps": bandwidth_kbps}
    if is_waveform_id(id):
        check_settings(id, "waveform", **settings, revision=revision, subfolder=subfolder)
        codec = load_waveform(id)
    elif is_original_id(id):
        check_settings(id, id.split(":")[0], **settings, revision=revision, subfolder=subfolder)
        codec = load_original(id, num_codebooks, bandwidth_kbps)
    else:
        codec = load_from_hub(id, revision, num_codebooks, bandwidth_kbps, subfolder, family)
    if stereo:
        codec = Stereo(codec)
    return codec.requires_grad_(False).eval().to(device)


def load_codec_from_config(config: schema.Codec, device: str | torch.device = "cpu") -> Codec:
    """Load the codec that a recipe's section `codec` names."""
    match config:
        case schema.PocketCodec():
            return load_codec("pocket", stereo=config.stereo, device=device)
        case schema.PocketVaeCodec():
            return load_codec("pocket_vae", device=device)
        case schema.WaveformCodec():
            return load_codec(f"{config.kind}:{config.sample_rate_hz}", stereo=config.stereo, device=device)
        case schema.EncodecCodec() | schema.XcodecCodec():
            return load_codec(
                config.id,
                revision=config.revision,
                bandwidth_kbps=config.bandwidth_kbps,
                stereo=config.stereo,
                family=config.kind,
                device=device,
            )
        case schema.OriginalEncodecCodec():
            return load_codec(config.id, bandwidth_kbps=config.bandwidth_kbps, device=device)
        case schema.OriginalDacCodec():
            return load_codec(
                config.id, num_codebooks=config.num_codebooks, stereo=config.stereo, device=device
            )
        case schema.DacCodec() | schema.MimiCodec():
            return load_codec(
                config.id,
                revision=config.revision,
                num_codebooks=config.num_codebooks,
                stereo=config.stereo,
                family=config.kind,
                device=device,
            )
        case schema.OobleckCodec():
            return load_codec(
                config.id,
                revision=config.revision,
                subfolder=config.subfolder,
                family=config.kind,
                device=device,
            )


def load_codec_from_info(info: CodecInfo, device: str | torch.device = "cpu") -> Codec:
    """Load the codec that made tokens, so that its codes mean what theirs do; `info` is of their store.

    Raises `UserError` if it cannot be found any more, or has changed since.
    """
    from .families.codec_waveform import is_waveform_id

    tells_codebooks = info.num_codebooks > 0 and info.bandwidth_kbps is None and not is_waveform_id(info.id)
    codec = load_codec(
        info.id,
        # The hash of a folder's weights is no revision that could be asked for.
        revision=None if Path(info.id).exists() or has_no_revisions(info.id) else info.revision,
        num_codebooks=info.num_codebooks // (2 if info.stereo else 1) if tells_codebooks else None,
        bandwidth_kbps=info.bandwidth_kbps,
        subfolder=info.subfolder,
        stereo=info.stereo,
        device=device,
    )
    info.check_matches(codec.info, f"codec {info.id} as it is now")
    codec.info = dataclasses.replace(codec.info, median_gain=info.median_gain)
    return codec


def has_no_revisions(id: str) -> bool:
    """Whether `id` is one of Tokkata's own names, not of the Hub."""
    from .codec_hub import SHIPPED

    return id in SHIPPED or ":" in id


def load_strictly(
    model_class: Any,
    id: str,
    source: str,
    revision: str | None,
    subfolder: str | None = None,
    weights: str = "model.safetensors",
) -> Any:
    """`from_pretrained` in float32, refusing weights that do not fit the architecture."""
    try:
        model, report = model_class.from_pretrained(
            source,
            revision=revision,
            subfolder=subfolder or "",
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below, with names
            output_loading_info=True,
        )
    except (OSError, SafetensorError) as error:
        if not Path(source, subfolder or "", weights).is_file():
            raise UserError(not_found(id, revision, "codec", weights)) from error
        raise UserError(
            f"the weights of codec {id} are damaged ({_deepest(error)}): download them again"
        ) from error
    mismatched = [found if isinstance(found, str) else found[0] for found in report["mismatched_keys"]]
    check_fit(id, "its config.json", report["missing_keys"], report["unexpected_keys"], mismatched)
    return model


def _deepest(error: BaseException) -> BaseException:
    """What a library's error arose from, which it may have buried in paragraphs of advice."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def check_fit(
    id: str, what: str, missing: Collection[str], unexpected: Collection[str], mismatched: Collection[str]
) -> None:
    """Raise `UserError` with the names of weights that do not fit `what`, if there are any."""
    faults = {"missing": missing, "not expected": unexpected, "of another shape": mismatched}
    told = [f"{kind}: {', '.join(sorted(keys)[:5])}" for kind, keys in faults.items() if keys]
    if told:
        raise UserError(f"the weights of codec {id} do not fit {what}; {'; '.join(told)}")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a code's last bit."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
