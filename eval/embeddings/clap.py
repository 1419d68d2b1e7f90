"""CLAP (Wu et al., arXiv:2211.06687): audio and sentences in one space, in its `transformers` port.

Shapes: B clips or sentences, N samples, W windows of a clip, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.clap import ClapNetwork, load_clap_network
from ..embedding import EmbeddingInfo, TextEmbedding, check_mono

IDS = {
    "clap": "laion/clap-htsat-unfused",
    "clap-music": "laion/larger_clap_music",
    "clap-general": "laion/larger_clap_general",
}
WINDOWS_AT_ONCE = 8


class Clap(TextEmbedding):
    """CLAP's projected vector of each 10 s, of length 1; `ClapFrontEnd` says what is done to the audio.

    Source: Y. Wu et al., Large-scale Contrastive Language-Audio Pretraining, arXiv:2211.06687; weights
    `laion/clap-htsat-unfused` (`clap`), `laion/larger_clap_music` (`clap-music`) and
    `laion/larger_clap_general` (`clap-general`) on the Hugging Face Hub. A clip's vector is the mean over its
    windows, brought to length 1. fadtk rounds the audio to 16 bits first and fills the last window up with
    zeros; this does neither, so its figures differ a little.
    """

    def __init__(self, info: EmbeddingInfo, network: ClapNetwork) -> None:
        super().__init__(info)
        self._network = network
        self._front_end = network.front_end

    def frames(self, num_samples: int) -> int:
        """One for each 10 s begun."""
        return self._front_end.num_windows(num_samples)

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, W, D]`, each vector of length 1."""
        check_mono(audio)
        windows = self._front_end.cut(audio[:, 0].to(self._network.device, torch.float32))
        pieces = torch.split(windows.flatten(0, 1), WINDOWS_AT_ONCE)
        vectors = [self._network.embed_windows(piece) for piece in pieces]
        return torch.cat(vectors).reshape(*windows.shape[:2], self.info.width)

    @torch.no_grad()
    def embed_clip(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, D]`: the mean of the windows' vectors, of length 1."""
        return F.normalize(self.embed(audio).mean(1), dim=-1)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Sentences to `[B, D]`, each vector of length 1; `ValueError` if there are none."""
        if not texts:
            raise ValueError("there are no sentences to embed")
        return self._network.embed_text(texts)


def load_clap(name: str, weights: Path | None, device: torch.device) -> Clap:
    """CLAP by one of the names in `IDS`, or as `clap:ID`.

    Raises `UserError` as `load_clap_network` does.
    """
    network = load_clap_network(
        "embedding",
        name,
        IDS.get(name) or name.partition(":")[2],
        weights,
        device,
        instead=f", such as {IDS['clap']}",
    )
    extractor = network.extractor
    window_s = network.front_end.window_samples / extractor.sampling_rate
    info = EmbeddingInfo(
        name=name,
        version=network.version,
        sample_rate=extractor.sampling_rate,
        width=network.width,
        frame_s=window_s,
        hop_s=window_s,
        preprocessing=(
            f"windows of {window_s:g} s, a shorter clip repeated; {extractor.feature_size} Slaney-mel bands"
            f" {extractor.frequency_min:g}-{extractor.frequency_max:g} Hz in dB; vectors of length 1"
        ),
        source=f"arXiv:2211.06687, {network.source}",
    )
    return Clap(info, network)
