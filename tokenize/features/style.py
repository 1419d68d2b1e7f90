"""Style: one vector for a clip's sound, from a codec's encoder or a CLAP's audio tower.

Shapes: B windows, C channels, N samples, T frames, E width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core import schema_features as schema
from ...core.clap import ClapNetwork, load_clap_network
from ...core.errors import UserError
from ...core.hub_cache import hub_snapshot
from ..chunking import Window, window_frames
from ..codec import Codec, has_no_revisions, library_versions, load_codec
from ..fast_codec import fast
from ..share_out import share_out
from .feature import WINDOW_S, AudioEncoder, FeatureInfo


class CodecStyle(AudioEncoder):
    """The mean over the clip of a codec's latents before quantisation, `[1, E]`.

    A clip longer than 20 s goes through the encoder in the windows that its tokens would be made in. The sum
    is in float64.
    """

    def __init__(self, config: schema.StyleFeature, codec: Codec) -> None:
        self._codec = fast(codec)
        self._shares_out = self._codec is not codec  # a window's work among threads
        info = codec.info
        super().__init__(_info(config, info.revision, info.latent_dim, info.sample_rate, info.channels))
        self._window_frames = window_frames(codec.chunking, info.frame_rate, WINDOW_S)

    def plan(self, num_samples: int) -> list[Window]:
        """The codec's own windows."""
        return self._codec.plan(num_samples, self._window_frames)

    def encode_windows(self, audio: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        """Samples `[B, C, N]` to the sum of the latents that each window keeps, `[E]` float64."""
        latents = _encode(self._codec.encode_latents, audio, self._codec.device, self._shares_out)
        return [
            found[:, window.drop_frames : window.drop_frames + window.keep_frames].double().sum(dim=1).cpu()
            for found, window in zip(latents, windows, strict=True)
        ]

    def join(self, parts: Sequence[Tensor], windows: Sequence[Window]) -> Tensor:
        """The mean over all frames, `[1, E]`."""
        total = torch.stack(list(parts)).sum(dim=0)
        return (total / sum(window.keep_frames for window in windows))[None]


class ClapStyle(AudioEncoder):
    """The mean of a CLAP's vectors of each 10 s (arXiv:2211.06687), brought to length 1, `[1, E]`.

    `core.clap.ClapFrontEnd` says what is done to the audio; the last window is moved back to end with the
    clip.
    """

    def __init__(self, config: schema.StyleFeature, network: ClapNetwork) -> None:
        rate = int(network.extractor.sampling_rate)
        super().__init__(_info(config, network.version, network.width, rate, 1))
        self._network = network

    def plan(self, num_samples: int) -> list[Window]:
        """Windows of 10 s; a shorter clip is one."""
        size = self._network.front_end.window_samples
        if num_samples <= size:
            return [Window(0, num_samples, 0, 1)]
        count = self._network.front_end.num_windows(num_samples)
        return [Window(min(i * size, num_samples - size), size, 0, 1) for i in range(count)]

    def encode_windows(self, audio: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        """Samples `[B, 1, N]` to a vector `[E]` each."""
        windows_of_10_s = self._network.front_end.cut(audio[:, 0])[:, 0]
        vectors = _encode(self._network.embed_windows, windows_of_10_s, self._network.device, False)
        return [vector.cpu() for vector in vectors]

    def join(self, parts: Sequence[Tensor], windows: Sequence[Window]) -> Tensor:
        """Their mean, of length 1, `[1, E]`."""
        return F.normalize(torch.stack(list(parts)).mean(dim=0), dim=-1)[None]


def _encode(
    encode: Callable[[Tensor], Tensor], windows: Tensor, device: torch.device, shares_out: bool
) -> list[Tensor]:
    """What `encode` makes of each of `windows` `[B, …]`: of all at once; or one by one, on a CPU, where it
    does not itself see to it that the number of threads decides nothing."""
    if device.type != "cpu" or shares_out:
        return list(encode(windows.to(device)))
    found: dict[int, Tensor] = {}

    def encode_one(index: int) -> None:
        found[index] = encode(windows[index : index + 1])[0]

    share_out(encode_one, range(len(windows)))
    return [found[index] for index in range(len(windows))]


def load_style(config: schema.StyleFeature, device: torch.device) -> AudioEncoder:
    """The encoder that a recipe names; raises `UserError` if it cannot be had, or has no latents."""
    id = config.encoder
    if _is_clap(id, config.revision):
        if config.bandwidth_kbps is not None:
            raise UserError(f"style encoder {id} is a CLAP: remove bandwidth_kbps")
        network = load_clap_network("style encoder", id, id, None, device, revision=config.revision)
        return ClapStyle(config, network)
    codec = load_codec(id, revision=config.revision, bandwidth_kbps=config.bandwidth_kbps, device=device)
    if codec.hop_length == 1:
        raise UserError(f"style encoder {id} has no network: choose a codec that has one, such as pocket")
    return CodecStyle(config, codec)


def _is_clap(id: str, revision: str | None) -> bool:
    """Whether a folder, or a model of the Hub, is a CLAP; anything else is for `load_codec` to find."""
    if has_no_revisions(id):
        return False
    if Path(id).exists():
        path = Path(id, "config.json")
    else:
        # A diffusion pipeline has its autoencoder in `vae`.
        layouts = [("config.json",), ("vae/config.json",)]
        path = hub_snapshot(id, revision, layouts, "style encoder").folder / "config.json"
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: download it again") from error
    return isinstance(config, dict) and config.get("model_type") == "clap"


def _info(
    config: schema.StyleFeature, revision: str | None, dim: int, sample_rate: int, channels: int
) -> FeatureInfo:
    return FeatureInfo(
        name=config.name,
        kind="style",
        dim=dim,
        frame_rate=None,
        store="float32",
        versions=library_versions(),
        encoder=config.encoder,
        revision=revision,
        bandwidth_kbps=config.bandwidth_kbps,
        sample_rate=sample_rate,
        channels=channels,
    )
