"""Codecs: audio to discrete codes or continuous latents and back.

Shapes: B batch, C channels, N samples, K codebooks, T frames, V codebook size, D latent width.
`load_codec` is the way in; each family of codecs is one file beside this one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig

from ..core import schema
from ..core.errors import UserError
from ..core.files import write_json

POCKET_FOLDER = Path(__file__).parent / "pocket"


@dataclass(frozen=True)
class CodecInfo:
    """What anyone who holds tokens must know of the codec that made them; stored as `codec.json`."""

    id: str
    """What `load_codec` takes: `pocket`, a hub id, or a folder."""
    revision: str | None
    """Commit or tag on the Hub; for a folder, the start of the weights' sha256."""
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

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; raises `UserError` if it is something else."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} does not describe a codec: {error}") from error

    def check_matches(self, other: CodecInfo, where: str) -> None:
        """Raise `UserError` if codes of `other` mean something else than codes of this codec."""
        for name in ("id", "revision", "sample_rate", "hop_length", "num_codebooks", "codebook_size"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
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

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of `num_samples`; the last one may be partly padding."""
        return math.ceil(num_samples / self.info.hop_length)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio `[B, C, N]` to codes `[B, K, T]`, int64, T = ceil(N / hop_length)."""
        return self._encode(self._prepare(audio)).contiguous()

    @torch.no_grad()
    def decode(self, codes: Tensor, num_samples: int | None = None) -> Tensor:
        """Codes `[B, K, T]` to audio `[B, C, num_samples]`; T · hop_length samples if not told."""
        if codes.ndim != 3 or codes.shape[1] != self.info.num_codebooks:
            raise ValueError(f"codes [B, {self.info.num_codebooks}, T] expected, not {list(codes.shape)}")
        return self._fit(self._decode(codes), codes.shape[-1], num_samples)

    @torch.no_grad()
    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio `[B, C, N]` to the encoder's output before quantisation, `[B, D, T]`."""
        return self._encode_latents(self._prepare(audio))

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, num_samples: int | None = None) -> Tensor:
        """Latents `[B, D, T]` to audio `[B, C, num_samples]`, without quantisation."""
        return self._fit(self._decode_latents(latents), latents.shape[-1], num_samples)

    def _prepare(self, audio: Tensor) -> Tensor:
        if audio.ndim != 3 or audio.shape[1] != self.info.channels:
            raise ValueError(f"audio [B, {self.info.channels}, N] expected, not {list(audio.shape)}")
        # Codecs floor the number of frames in different ways: a whole number of hops leaves no choice.
        return F.pad(audio.float(), (0, -audio.shape[-1] % self.info.hop_length))

    def _fit(self, audio: Tensor, num_frames: int, num_samples: int | None) -> Tensor:
        # Decoders with odd strides come out a few samples short.
        wanted = num_frames * self.info.hop_length if num_samples is None else num_samples
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
    device: str | torch.device = "cpu",
) -> Codec:
    """Load a codec by name.

    Args:
        id: `pocket` (ships with Tokkata), a hub id such as `facebook/encodec_32khz` or
            `descript/dac_44khz`, or a local folder in the hub's layout.
        revision: commit or tag on the Hub.
        num_codebooks: for DAC: how many codebooks to keep, coarsest first; all if not told.
        bandwidth_kbps: for EnCodec: needed where the model has more than one bandwidth.
        device: where the weights go.

    Raises `UserError` if the codec cannot be found, is of an unknown family, or lacks a setting.
    """
    from .codec_dac import HubDac
    from .codec_encodec import HubEncodec

    source = str(POCKET_FOLDER) if id == "pocket" else id
    weights = Path(source) / "model.safetensors"
    if weights.is_file():
        with weights.open("rb") as file:
            revision = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    try:
        family = AutoConfig.from_pretrained(source, revision=revision).model_type
    except (OSError, ValueError) as error:
        raise UserError(_not_found(id, revision)) from error
    codec: Codec
    if family == "dac":
        if bandwidth_kbps is not None:
            raise UserError(f"codec {id} is a DAC: choose num_codebooks, not bandwidth_kbps")
        codec = HubDac.load(id, source, revision, num_codebooks)
    elif family == "encodec":
        if num_codebooks is not None:
            raise UserError(f"codec {id} is an EnCodec: choose bandwidth_kbps, not num_codebooks")
        codec = HubEncodec.load(id, source, revision, bandwidth_kbps)
    else:
        raise UserError(f"codec {id} is of family '{family}'; known are 'dac' and 'encodec'")
    return codec.requires_grad_(False).eval().to(device)


def load_codec_from_config(config: schema.Codec, device: str | torch.device = "cpu") -> Codec:
    """Load the codec that a recipe's section `codec` names."""
    match config:
        case schema.PocketCodec():
            return load_codec("pocket", device=device)
        case schema.EncodecCodec():
            return load_codec(
                config.id, revision=config.revision, bandwidth_kbps=config.bandwidth_kbps, device=device
            )
        case schema.DacCodec():
            return load_codec(
                config.id, revision=config.revision, num_codebooks=config.num_codebooks, device=device
            )


def _not_found(id: str, revision: str | None) -> str:
    if Path(id).exists():
        return f"{id} is not a codec in the hub's layout: config.json and model.safetensors are needed"
    pinned = f" --revision {revision}" if revision else ""
    return (
        f"codec {id} is neither a folder nor in the Hugging Face cache, and cannot be downloaded now:"
        f" run `hf download {id}{pinned}` where there is a network, or give a folder in the hub's layout"
    )


def load_strictly(model_class: Any, id: str, source: str, revision: str | None) -> Any:
    """`from_pretrained` in float32, refusing weights that do not fit the architecture."""
    try:
        model, report = model_class.from_pretrained(
            source,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below, with names
            output_loading_info=True,
        )
    except OSError as error:
        raise UserError(_not_found(id, revision)) from error
    except SafetensorError as error:
        raise UserError(f"the weights of codec {id} are damaged ({error}): download them again") from error
    mismatched = [found if isinstance(found, str) else found[0] for found in report["mismatched_keys"]]
    faults = {
        "missing": report["missing_keys"],
        "not expected": report["unexpected_keys"],
        "of another shape": mismatched,
    }
    told = [f"{kind}: {', '.join(sorted(keys)[:5])}" for kind, keys in faults.items() if keys]
    if told:
        raise UserError(f"the weights of codec {id} do not fit its config.json; {'; '.join(told)}")
    return model


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a code's last bit."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
