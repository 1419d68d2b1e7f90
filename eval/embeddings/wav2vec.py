"""Networks of wav2vec 2.0's build over raw audio, MERT among them, in their `transformers` ports.

Shapes: B clips, N samples, n samples of a window, T frames, D width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ...core.errors import UserError
from ...core.hub_model import HubModel, find_hub_model, load_hub_model
from ..embedding import Embedding, EmbeddingInfo, check_mono

MERT = "m-a-p/MERT-v1-95M"
WINDOW_S = 20.0
"""Attention costs the square of a clip's length, so longer clips are cut."""

_EXTRACTOR = "preprocessor_config.json"

# MERT's repositories bring their own code, which is HuBERT's but for options that the published 95M model
# has turned off; `_check_mert` holds them off.
_KINDS = {
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model", "arXiv:2006.11477"),
    "hubert": ("HubertConfig", "HubertModel", "arXiv:2106.07447"),
    "wavlm": ("WavLMConfig", "WavLMModel", "arXiv:2110.13900"),
    "data2vec-audio": ("Data2VecAudioConfig", "Data2VecAudioModel", "arXiv:2202.03555"),
    "unispeech-sat": ("UniSpeechSatConfig", "UniSpeechSatModel", "arXiv:2110.05752"),
    "mert_model": ("HubertConfig", "HubertModel", "arXiv:2306.00107"),
}


class Wav2vec(Embedding):
    """A layer of a network of wav2vec 2.0's build: wav2vec 2.0, HuBERT, WavLM, data2vec, UniSpeech-SAT, MERT.

    Mono at the rate that preprocessor_config.json says (16 kHz for speech, 24 kHz for MERT). A clip longer
    than 20 s is cut into windows of 20 s without overlap; what is left at the end is a window too, unless it
    is shorter than one frame needs (25 ms in all published models). Where `do_normalize` is set, each window
    is brought to mean 0 and variance 1 (+ 1e-7), which takes its loudness away. The frames are the hidden
    states of one layer: 0 is what goes into the first block of the Transformer, L what comes out of the
    last, which is what is taken if no layer is told.

    Source: for MERT Y. Li et al., arXiv:2306.00107, weights https://huggingface.co/m-a-p/MERT-v1-95M; for the
    others their pages on the Hub; `_KINDS` has the papers. fadtk takes MERT's layers one by one and names
    them likewise.
    """

    def __init__(
        self, info: EmbeddingInfo, model: Any, layer: int, normalize: bool, device: torch.device
    ) -> None:
        super().__init__(info)
        self._model = model.to(device)
        self._layer = layer
        self._normalize = normalize
        self._device = device
        self._window = round(WINDOW_S * info.sample_rate)

    def _window_frames(self, num_samples: int) -> int:
        """Frames of one window: each convolution without padding, in turn."""
        count, config = num_samples, self._model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            count = (count - kernel) // stride + 1 if count >= kernel else 0
        return count

    def frames(self, num_samples: int) -> int:
        """Frames of all windows of a clip; 0 if it is shorter than one frame needs."""
        whole, rest = divmod(num_samples, self._window)
        return whole * self._window_frames(self._window) + self._window_frames(rest)

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, T, D]`."""
        check_mono(audio)
        samples = audio[:, 0].to(self._device, torch.float32)
        pieces = torch.split(samples, self._window, dim=-1)
        windows = [piece for piece in pieces if self._window_frames(piece.shape[-1])]
        if not windows:
            return samples.new_zeros(len(samples), 0, self.info.width)
        return torch.cat([self._hidden(window) for window in windows], dim=1)

    def _hidden(self, window: Tensor) -> Tensor:
        if self._normalize:
            variance, mean = torch.var_mean(window, dim=-1, keepdim=True, correction=0)
            window = (window - mean) / torch.sqrt(variance + 1e-7)
        hidden: Tensor = self._model(window, output_hidden_states=True).hidden_states[self._layer]
        return hidden


def load_wav2vec(name: str, weights: Path | None, device: torch.device) -> Wav2vec:
    """`mert`, `mert:ID` or `w2v2:ID`, each of the last two with `#LAYER` behind it or without.

    Raises `UserError` if it cannot be had, is of another build, or has no such layer.
    """
    id, _, layer_text = (name.partition(":")[2] or MERT).partition("#")
    if layer_text and not (layer_text.isascii() and layer_text.isdigit()):
        raise UserError(f"embedding {name}: behind '#' stands the number of a layer, not '{layer_text}'")
    model = find_hub_model("embedding", name, id, weights, (_EXTRACTOR,))
    config, model_class, paper = _resolve(name, model)
    last = config.num_hidden_layers
    layer = int(layer_text) if layer_text else last
    if layer > last:
        raise UserError(f"embedding {name}: the model has the layers 0 to {last}, not {layer}")
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(model.folder, local_files_only=True)
    # The vector that stands for hidden audio is used in training alone, and not every repository has it.
    network = load_hub_model("embedding", name, model_class, config, model, may_lack=("masked_spec_embed",))
    rate = extractor.sampling_rate
    level = "mean 0 and variance 1" if extractor.do_normalize else "as they are"
    info = EmbeddingInfo(
        name=name,
        version=model.version,
        sample_rate=rate,
        width=config.hidden_size,
        frame_s=WINDOW_S,
        hop_s=math.prod(config.conv_stride) / rate,
        preprocessing=f"windows of {WINDOW_S:g} s, {level}; hidden states of layer {layer} of {last}",
        source=f"{paper}, {model.source}",
    )
    return Wav2vec(info, network, layer, extractor.do_normalize, device)


def _resolve(name: str, model: HubModel) -> tuple[Any, Any, str]:
    """Configuration, class and paper of a model; raises `UserError` if it is of another build."""
    kind = model.config.get("model_type")
    if kind not in _KINDS:
        raise UserError(
            f"embedding {name}: the model in {model.folder} is of type '{kind}';"
            f" known are {', '.join(_KINDS)}"
        )
    config_name, model_name, paper = _KINDS[kind]
    if kind == "mert_model":
        _check_mert(name, model.config)
    # `auto_map` would name code of the repository's own.
    values = {key: value for key, value in model.config.items() if key not in ("auto_map", "model_type")}
    return getattr(transformers, config_name).from_dict(values), getattr(transformers, model_name), paper


def _check_mert(name: str, config: dict[str, Any]) -> None:
    """Raise `UserError` for a MERT that is more than a HuBERT."""
    for option, what in (
        ("feature_extractor_cqt", "a constant-Q transform"),
        ("deepnorm", "scaled residual connections"),
    ):
        if config.get(option):
            raise UserError(
                f"embedding {name}: this MERT has {what} ({option} in its config.json), which only its own"
                f" code computes, and code of a repository is never run: choose {MERT}"
            )
