"""EnCodec and DAC in the packages of their authors, `encodec` and `descript-audio-codec`.

Weights come from where these packages have them, and lie where these packages look for them; files already
there are used. The packages' own loaders unpickle them, which runs code of whoever wrote the file; here they
are read as tensors alone.

Shapes: B batch, C channels, N samples, K codebooks, T frames, D latent width.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dac
import encodec
import torch
from encodec.modules import SLSTM
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel

from ...core.errors import UserError
from ...core.released_file import ReleasedFile, released_file, sha256_of
from ..codec import Chunking, Codec, CodecInfo, check_fit, library_versions
from ..receptive_field import conv_context
from ..segments import SegmentedCodec, Segments
from ..streaming import Parts
from .codec_encodec import LSTM_WARM_UP_S, DecoderParts, choose_bandwidth


@dataclass(frozen=True)
class Release:
    """One set of weights that the authors published."""

    url: str
    folder: Callable[[], Path]
    """Where the package keeps it."""
    file: str
    build: Callable[[], Any]
    """The package's model, with random weights."""
    sha256: str | None = None
    """The start of the file's hash, where its name tells."""


def _torch_checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _dac_cache() -> Path:
    return Path.home() / ".cache" / "descript" / "dac"


def _encodec_release(name: str, build: Callable[[], Any]) -> Release:
    return Release(
        url=f"https://dl.fbaipublicfiles.com/encodec/v0/{name}",
        folder=_torch_checkpoints,
        file=name,
        build=build,
        sha256=Path(name).stem.split("-")[1],
    )


def _dac_release(tag: str, asset: str, file: str, **sizes: Any) -> Release:
    return Release(
        url=f"https://github.com/descriptinc/descript-audio-codec/releases/download/{tag}/{asset}",
        folder=_dac_cache,
        file=file,
        build=functools.partial(dac.DAC, **sizes),
    )


_SHORT_HOP: dict[str, Any] = {"encoder_rates": [2, 4, 5, 8], "decoder_rates": [8, 5, 4, 2]}

RELEASES = {
    "encodec:24khz": _encodec_release(
        "encodec_24khz-d7cc33bc.th", lambda: encodec.EncodecModel.encodec_model_24khz(pretrained=False)
    ),
    "encodec:48khz": _encodec_release(
        "encodec_48khz-7e698e3e.th", lambda: encodec.EncodecModel.encodec_model_48khz(pretrained=False)
    ),
    "dac:16khz": _dac_release(
        "0.0.5",
        "weights_16khz.pth",
        "weights_16khz_8kbps_0.0.5.pth",
        sample_rate=16000,
        n_codebooks=12,
        **_SHORT_HOP,
    ),
    "dac:24khz": _dac_release(
        "0.0.4",
        "weights_24khz.pth",
        "weights_24khz_8kbps_0.0.4.pth",
        sample_rate=24000,
        n_codebooks=32,
        **_SHORT_HOP,
    ),
    "dac:44khz": _dac_release(
        "0.0.1", "weights.pth", "weights_44khz_8kbps_0.0.1.pth", sample_rate=44100, n_codebooks=9
    ),
}


def is_original_id(id: str) -> bool:
    """Whether `id` asks for an original package, known model or not."""
    return id.startswith(("encodec:", "dac:"))


def load_original(id: str, num_codebooks: int | None, bandwidth_kbps: float | None) -> Codec:
    """A codec of `RELEASES` with its weights; settings as in `load_codec`.

    Raises `UserError` if there is no such model, its weights are neither here nor can be downloaded, or a
    setting does not suit it.
    """
    if id not in RELEASES:
        raise UserError(f"there is no codec {id}: choose one of {', '.join(RELEASES)}")
    release = RELEASES[id]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm. is deprecated", category=FutureWarning)
        model = release.build()
    # Before the weights: a setting that cannot be should not wait for a download.
    if isinstance(model, dac.DAC):
        kept = _choose_codebooks(id, model.n_codebooks, num_codebooks)
        return wrap_dac(id, _load_weights(id, release, model), model, kept)
    bandwidth_kbps = choose_bandwidth(id, [float(kbps) for kbps in model.target_bandwidths], bandwidth_kbps)
    return wrap_encodec(id, _load_weights(id, release, model), model, bandwidth_kbps)


def _choose_codebooks(id: str, most: int, wanted: int | None) -> int:
    kept = most if wanted is None else wanted
    if not 1 <= kept <= most:
        raise UserError(f"codec {id} has {most} codebooks: num_codebooks cannot be {kept}")
    return kept


# --- the models


class OriginalEncodec(Codec):
    """`encodec.EncodecModel` behind the codec interface, one whole clip, or one segment, at a time."""

    def __init__(self, info: CodecInfo, model: encodec.EncodecModel, bandwidth_kbps: float) -> None:
        super().__init__(info)
        self.model = model
        self.bandwidth_kbps = bandwidth_kbps

    @functools.cached_property
    def chunking(self) -> Chunking:
        """As `HubEncodec.chunking`: the convolutions' context, and a warm-up for the LSTM."""
        hop_length = self.info.hop_length
        warm_up = math.ceil(LSTM_WARM_UP_S * self.info.frame_rate)
        encoder = conv_context(self.model.encoder, hop_length, without=(SLSTM,))
        decoder = conv_context(self.model.decoder, hop_length, without=(SLSTM,))
        return Chunking(exact=False, encoder_context=encoder, decoder_context=decoder, warm_up=warm_up)

    def _encode(self, audio: Tensor) -> Tensor:
        latents = self.model.encoder(audio)
        codes: Tensor = self.model.quantizer.encode(latents, self.model.frame_rate, self.bandwidth_kbps)
        return codes.transpose(0, 1)  # [K, B, T] → [B, K, T]

    def _decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(self.model.quantizer.decode(codes.transpose(0, 1)))
        return audio

    def _decode_stream(self, codes: Parts, num_frames: int) -> Iterator[Tensor]:
        """As `HubEncodec._decode_stream`."""
        latents = (self.model.quantizer.decode(part.transpose(0, 1)) for part in codes)
        return self._decoder_parts.stream(latents, num_frames)

    @functools.cached_property
    def _decoder_parts(self) -> DecoderParts:
        layers = list(self.model.decoder.model)
        (at,) = (i for i, layer in enumerate(layers) if isinstance(layer, SLSTM))
        before, behind = nn.Sequential(*layers[:at]), nn.Sequential(*layers[at + 1 :])
        return DecoderParts.of(before, layers[at].lstm, behind, self.info.hop_length, layers[0].pad_mode)

    def _encode_latents(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.model.encoder(audio)
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(latents)
        return audio


class OriginalDac(Codec):
    """`dac.DAC` behind the codec interface.

    The package's own `compress` is not used: it changes the loudness, and its overlapping chunks give more
    frames than the audio has hops.
    """

    def __init__(self, info: CodecInfo, model: dac.DAC) -> None:
        super().__init__(info)
        self.model = model

    @functools.cached_property
    def chunking(self) -> Chunking:
        """Convolutions alone: exact, with the context that they have."""
        hop_length = self.info.hop_length
        return Chunking(
            exact=True,
            encoder_context=conv_context(self.model.encoder, hop_length),
            decoder_context=conv_context(self.model.decoder, hop_length),
        )

    def _encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self.model.encode(audio, self.info.num_codebooks)[1]
        return codes

    def _decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self.model.decode(self.model.quantizer.from_codes(codes)[0])
        return audio

    def _encode_latents(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.model.encoder(audio)
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.model.decode(latents)
        return audio


def wrap_encodec(id: str, revision: str | None, model: Any, bandwidth_kbps: float) -> Codec:
    """An `encodec.EncodecModel` as a codec; one that encodes in segments comes as a `SegmentedCodec`."""
    hop_length = int(model.encoder.hop_length)
    info = CodecInfo(
        id=id,
        revision=revision,
        sample_rate=model.sample_rate,
        channels=model.channels,
        hop_length=hop_length,
        frame_rate=model.sample_rate / hop_length,
        num_codebooks=model.quantizer.get_num_quantizers_for_bandwidth(model.frame_rate, bandwidth_kbps),
        codebook_size=model.quantizer.bins,
        latent_dim=model.encoder.dimension,
        versions=_versions("encodec"),
        bandwidth_kbps=bandwidth_kbps,
    )
    codec = OriginalEncodec(info, model, bandwidth_kbps)
    if not model.normalize and model.segment is None:
        return codec
    segments = Segments(hop_length, model.segment_length, model.segment_stride)
    return SegmentedCodec(codec, segments, normalize=model.normalize)


def wrap_dac(id: str, revision: str | None, model: Any, num_codebooks: int) -> OriginalDac:
    """A `dac.DAC` as a codec that keeps its first `num_codebooks` codebooks."""
    hop_length = int(model.hop_length)
    info = CodecInfo(
        id=id,
        revision=revision,
        sample_rate=model.sample_rate,
        channels=1,
        hop_length=hop_length,
        frame_rate=model.sample_rate / hop_length,
        num_codebooks=num_codebooks,
        codebook_size=model.codebook_size,
        latent_dim=model.latent_dim,
        versions=_versions("descript-audio-codec"),
    )
    return OriginalDac(info, model)


def _versions(package: str) -> dict[str, str]:
    return library_versions() | {package: importlib.metadata.version(package)}


# --- their weights


def _load_weights(id: str, release: Release, model: nn.Module) -> str:
    """Load the published weights into `model`; returns the start of the file's hash.

    Raises `UserError` if they cannot be had, are damaged, or do not fit.
    """
    published = ReleasedFile(release.url, release.folder() / release.file, release.sha256)
    path = released_file(f"codec {id}", published)
    damaged = f"the weights of codec {id} are damaged: delete {path}, and they are downloaded again"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(damaged) from error
    if isinstance(model, dac.DAC) and isinstance(weights, dict):
        weights = weights.get("state_dict")  # beside what the package's constructor takes
    if not isinstance(weights, dict):
        raise UserError(damaged)
    wanted = model.state_dict()
    mismatched = [
        name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape
    ]
    check_fit(id, "the package", wanted.keys() - weights.keys(), weights.keys() - wanted.keys(), mismatched)
    model.load_state_dict(weights)
    return sha256_of(path)[:12]


# --- EnCodec in the hub's layout


def encodec_to_hub(original: encodec.EncodecModel) -> EncodecModel:
    """The same codec as a `transformers.EncodecModel`, of any sizes that the package can build."""
    hub = EncodecModel(_hub_config(original)).eval()
    hub.load_state_dict({_hub_name(name): value for name, value in original.state_dict().items()})
    return hub


def _hub_config(original: Any) -> EncodecConfig:
    first, last = original.encoder.model[0], original.encoder.model[-1]
    block = original.encoder.model[1]
    (lstm,) = (layer.lstm for layer in original.encoder.model if isinstance(layer, SLSTM))
    return EncodecConfig(
        target_bandwidths=[float(kbps) for kbps in original.target_bandwidths],
        sampling_rate=original.sample_rate,
        audio_channels=original.channels,
        normalize=original.normalize,
        chunk_length_s=original.segment,
        overlap=None if original.segment is None else original.overlap,
        hidden_size=original.encoder.dimension,
        num_filters=original.encoder.n_filters,
        num_residual_layers=original.encoder.n_residual_layers,
        upsampling_ratios=list(original.decoder.ratios),
        norm_type=first.conv.norm_type,
        kernel_size=first.conv.conv.kernel_size[0],
        last_kernel_size=last.conv.conv.kernel_size[0],
        residual_kernel_size=block.block[1].conv.conv.kernel_size[0],
        use_causal_conv=first.causal,
        pad_mode=first.pad_mode,
        compress=original.encoder.n_filters // block.block[1].conv.conv.out_channels,
        num_lstm_layers=lstm.num_layers,
        codebook_size=original.quantizer.bins,
        codebook_dim=original.quantizer.dimension,
        use_conv_shortcut=not isinstance(block.shortcut, nn.Identity),
    )


_HUB_NAMES = (
    (r"\.(conv|convtr)\.\1\.", ".conv."),
    (r"\.(conv|convtr)\.norm\.", ".norm."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
)
"""How the names of weights differ, each change in turn."""


def _hub_name(name: str) -> str:
    for pattern, replacement in _HUB_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
