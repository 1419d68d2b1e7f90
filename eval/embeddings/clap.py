"""CLAP (Wu et al., arXiv:2211.06687): audio and sentences in one space, in its `transformers` port.

Shapes: B clips or sentences, N samples, W windows of a clip, F spectrogram frames, M mel bands, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase

from ...core.errors import UserError
from ..embedding import EmbeddingInfo, TextEmbedding, check_mono
from .hub_model import find_hub_model, load_hub_model

IDS = {
    "clap": "laion/clap-htsat-unfused",
    "clap-music": "laion/larger_clap_music",
    "clap-general": "laion/larger_clap_general",
}
WINDOWS_AT_ONCE = 8
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


class Clap(TextEmbedding):
    """CLAP's projected vector of each 10 s, of length 1; `ClapFrontEnd` says what is done to the audio.

    Source: Y. Wu et al., Large-scale Contrastive Language-Audio Pretraining, arXiv:2211.06687; weights
    `laion/clap-htsat-unfused` (`clap`), `laion/larger_clap_music` (`clap-music`) and
    `laion/larger_clap_general` (`clap-general`) on the Hugging Face Hub. A clip's vector is the mean over its
    windows, brought to length 1. fadtk rounds the audio to 16 bits first and fills the last window up with
    zeros; this does neither, so its figures differ a little.
    """

    def __init__(
        self,
        info: EmbeddingInfo,
        model: ClapModel,
        front_end: ClapFrontEnd,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ) -> None:
        super().__init__(info)
        self._model = model.to(device)
        self._front_end = front_end
        self._tokenizer = tokenizer
        self._device = device

    def frames(self, num_samples: int) -> int:
        """One for each 10 s begun."""
        return self._front_end.num_windows(num_samples)

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, W, D]`, each vector of length 1."""
        check_mono(audio)
        windows = self._front_end.cut(audio[:, 0].to(self._device, torch.float32))
        pieces = torch.split(windows.flatten(0, 1), WINDOWS_AT_ONCE)
        vectors = [
            self._model.get_audio_features(input_features=self._front_end.log_mel(piece)).pooler_output
            for piece in pieces
        ]
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
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        features: Tensor = self._model.get_text_features(
            input_ids=tokens["input_ids"].to(self._device),
            attention_mask=tokens["attention_mask"].to(self._device),
        ).pooler_output
        return features


def load_clap(name: str, weights: Path | None, device: torch.device) -> Clap:
    """CLAP by one of the names in `IDS`, or as `clap:ID`.

    Raises `UserError` if it cannot be had, is no CLAP, or fuses crops of long clips, which takes them at
    random.
    """
    model = find_hub_model(name, IDS.get(name) or name.partition(":")[2], weights, _FILES)
    kind = model.config.get("model_type")
    if kind != "clap":
        raise UserError(f"embedding {name}: the model in {model.folder} is of type '{kind}', not 'clap'")
    config = ClapConfig.from_dict(model.config)
    if config.audio_config.enable_fusion:
        raise UserError(
            f"embedding {name}: {model.source} fuses random crops of a clip, so its scores would be"
            f" random too: choose one without, such as {IDS['clap']}"
        )
    # Some repositories leave the length open; RoBERTa counts its positions from 2.
    tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
    tokenizer.model_max_length = min(
        tokenizer.model_max_length, config.text_config.max_position_embeddings - 2
    )
    extractor = ClapFeatureExtractor.from_pretrained(model.folder, local_files_only=True)
    network = load_hub_model(name, ClapModel, config, model)
    front_end = ClapFrontEnd(extractor, device)
    window_s = front_end.window_samples / extractor.sampling_rate
    info = EmbeddingInfo(
        name=name,
        version=model.version,
        sample_rate=extractor.sampling_rate,
        width=config.projection_dim,
        frame_s=window_s,
        hop_s=window_s,
        preprocessing=(
            f"windows of {window_s:g} s, a shorter clip repeated; {extractor.feature_size} Slaney-mel bands"
            f" {extractor.frequency_min:g}-{extractor.frequency_max:g} Hz in dB; vectors of length 1"
        ),
        source=f"arXiv:2211.06687, {model.source}",
    )
    return Clap(info, network, front_end, tokenizer, device)
