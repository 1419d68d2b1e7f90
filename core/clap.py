"""CLAP (Wu et al., arXiv:2211.06687): audio and sentences in one space, in its `transformers` port.

Shapes: B clips or sentences, N samples, W windows of a clip, F spectrogram frames, M mel bands, D width, L
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase

from .errors import UserError
from .hub_model import find_hub_model, load_hub_model

_FILES = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


class ClapFrontEnd:
    """Audio to log-mel spectrograms of windows of 10 s, as `transformers.ClapFeatureExtractor` makes them.

    As preprocessor_config.json says; for LAION's: 48 kHz mono, as loud as it is; windows of 1024 samples
    every 480 (periodic Hann, centred with reflection); powers; 64 Slaney-mel bands, 50–14000 Hz; 10 lg(x)
    of at least 1e-10. A clip is cut into windows of 10 s without overlap, the last of which is moved back to
    end with the clip; a shorter clip is repeated whole as often as it fits, then filled up with zeros
    (`repeatpad`). The extractor itself would take a random 10 s of a longer clip.
    """

    def __init__(self, extractor: ClapFeatureExtractor, device: torch.device) -> None:
        self.window_samples = int(extractor.nb_max_samples)
        self._fft, self._hop = extractor.fft_window_size, extractor.hop_length
        self._filters = torch.from_numpy(extractor.mel_filters_slaney).to(device, torch.float32)
        self._window = torch.hann_window(self._fft, device=device)

    def num_windows(self, num_samples: int) -> int:
        """Windows of a clip, at least one."""
        return max(1, math.ceil(num_samples / self.window_samples))

    def cut(self, samples: Tensor) -> Tensor:
        """Samples `[B, N]` to windows `[B, W, window_samples]`."""
        length, wanted = samples.shape[-1], self.window_samples
        if length < wanted:
            repeated = samples.repeat(1, wanted // length)
            return F.pad(repeated, (0, wanted - repeated.shape[-1]))[:, None]
        starts = [min(i * wanted, length - wanted) for i in range(self.num_windows(length))]
        return torch.stack([samples[:, start : start + wanted] for start in starts], dim=1)

    def log_mel(self, windows: Tensor) -> Tensor:
        """Windows `[B, window_samples]` to decibels `[B, 1, F, M]`."""
        spectra = torch.stft(
            windows.to(self._filters),
            self._fft,
            self._hop,
            window=self._window,
            pad_mode="reflect",
            return_complex=True,
        )
        powers = spectra.abs().square().transpose(1, 2) @ self._filters  # [B, F, M]
        return 10.0 * torch.log10(powers.clamp(min=1e-10))[:, None]


@dataclass(frozen=True)
class ClapNetwork:
    """A CLAP whose both towers give vectors of length 1 in one space."""

    model: ClapModel
    front_end: ClapFrontEnd
    tokenizer: PreTrainedTokenizerBase
    extractor: ClapFeatureExtractor
    """Its preprocessor_config.json."""
    version: str
    """Commit on the Hub; for a folder, the start of its weights' SHA-256."""
    source: str
    """Address on the Hub, or the folder."""
    device: torch.device

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.config.projection_dim)

    @torch.no_grad()
    def embed_windows(self, windows: Tensor) -> Tensor:
        """Windows `[B, window_samples]` to `[B, D]`."""
        features: Tensor = self.model.get_audio_features(
            input_features=self.front_end.log_mel(windows)
        ).pooler_output
        return features

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Sentences, cut to what the network can take, to `[B, D]`."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self.embed_tokens(tokens["input_ids"], tokens["attention_mask"])

    @torch.no_grad()
    def embed_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Tokens `[B, L]` of sentences, of which those count whose `mask` is not 0, to `[B, D]`."""
        features: Tensor = self.model.get_text_features(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).pooler_output
        return features


def load_clap_network(
    what: str,
    name: str,
    id: str,
    weights: Path | None,
    device: torch.device,
    *,
    revision: str | None = None,
    instead: str = "",
) -> ClapNetwork:
    """The CLAP of a hub id or a folder; arguments as of `find_hub_model`, `instead` is advice.

    Raises `UserError` if it cannot be had, is no CLAP, or fuses crops of long clips, which takes them at
    random.
    """
    found = find_hub_model(what, name, id, weights, _FILES, revision)
    kind = found.config.get("model_type")
    if kind != "clap":
        raise UserError(f"{what} {name}: the model in {found.folder} is of type '{kind}', not 'clap'")
    config = ClapConfig.from_dict(found.config)
    if config.audio_config.enable_fusion:
        raise UserError(
            f"{what} {name}: {found.source} fuses random crops of a clip, so what it gives would be"
            f" random too: choose one without{instead}"
        )
    # Some repositories leave the length open; RoBERTa counts its positions from 2.
    tokenizer = AutoTokenizer.from_pretrained(found.folder, local_files_only=True)
    tokenizer.model_max_length = min(
        tokenizer.model_max_length, config.text_config.max_position_embeddings - 2
    )
    extractor = ClapFeatureExtractor.from_pretrained(found.folder, local_files_only=True)
    model = load_hub_model(what, name, ClapModel, config, found).to(device)
    front_end = ClapFrontEnd(extractor, device)
    return ClapNetwork(model, front_end, tokenizer, extractor, found.version, found.source, device)
