"""Audio classifiers, in their `transformers` ports, for scores of what labels clips are given.

None comes with Tokkata, and none is downloaded unless it is named.

Shapes: B clips, N samples, n samples of a window, W windows of a clip, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from ..core.device import best_device
from ..core.errors import UserError
from ..core.hub_model import find_hub_model, load_hub_model
from .embedding import Embedding, EmbeddingInfo, check_mono

WINDOW_S = 10.0
"""What most classifiers were trained on (AudioSet's clips); longer clips are cut."""
WINDOWS_AT_ONCE = 8

_EXTRACTOR = "preprocessor_config.json"


class Classifier(Embedding):
    """The probabilities of a classifier's labels, one frame for each 10 s begun.

    Mono at the rate that preprocessor_config.json says. A clip longer than 10 s is cut into windows of 10 s
    without overlap, the last of which is moved back to end with the clip; a shorter one is one window. Each
    goes through the model's own feature extractor. Probabilities are the softmax of the logits, of models
    that were trained with several labels a clip too, as audiocraft and stable-audio-metrics do it for their
    divergences. A clip's probabilities are the mean over its windows.
    """

    def __init__(
        self, info: EmbeddingInfo, labels: Sequence[str], model: Any, extractor: Any, device: torch.device
    ) -> None:
        super().__init__(info)
        self.labels = tuple(labels)
        """The name of each of the L labels."""
        self._model = model.to(device)
        self._extractor = extractor
        self._device = device
        self._window = round(WINDOW_S * info.sample_rate)

    def frames(self, num_samples: int) -> int:
        """One for each 10 s begun."""
        return max(1, math.ceil(num_samples / self._window))

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to probabilities `[B, W, L]`."""
        check_mono(audio)
        length = min(self._window, audio.shape[2])
        starts = [min(i * length, audio.shape[2] - length) for i in range(self.frames(audio.shape[2]))]
        windows = torch.stack([audio[:, 0, start : start + length] for start in starts], dim=1)
        found = [self._probabilities(piece) for piece in torch.split(windows.flatten(0, 1), WINDOWS_AT_ONCE)]
        return torch.cat(found).reshape(len(audio), len(starts), len(self.labels))

    def _probabilities(self, windows: Tensor) -> Tensor:
        """Windows `[B, n]` to `[B, L]`."""
        samples = [window.numpy() for window in windows.float().cpu()]
        features = self._extractor(samples, sampling_rate=self.info.sample_rate, return_tensors="pt")
        logits = self._model(**{name: value.to(self._device) for name, value in features.items()}).logits
        return torch.softmax(logits.float(), dim=-1)


def load_classifier(id: str, *, device: str | torch.device | None = None) -> Classifier:
    """The classifier `id`: a hub id, or a folder in the hub's layout.

    Raises `UserError` if it is neither here nor can be downloaded, or is no audio classifier that
    `transformers` has a class for (code of a repository is never run).
    """
    model = find_hub_model("classifier", id, id, None, (_EXTRACTOR,))
    # `auto_map` would name code of the repository's own.
    values = {key: value for key, value in model.config.items() if key not in ("auto_map", "model_type")}
    kind = model.config.get("model_type")
    known = transformers.models.auto.modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES
    if kind not in known:
        raise UserError(
            f"classifier {id}: the model in {model.folder} is of type '{kind}', which transformers has no"
            " audio classifier for: choose another"
        )
    config = transformers.AutoConfig.for_model(kind, **values)
    network = load_hub_model("classifier", id, getattr(transformers, known[kind]), config, model)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(model.folder, local_files_only=True)
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    info = EmbeddingInfo(
        name=f"classifier {id}",
        version=model.version,
        sample_rate=extractor.sampling_rate,
        width=len(labels),
        frame_s=WINDOW_S,
        hop_s=WINDOW_S,
        preprocessing=f"windows of {WINDOW_S:g} s through {type(extractor).__name__}; softmax of the logits",
        source=model.source,
    )
    device = torch.device(device) if device is not None else best_device()
    return Classifier(info, labels, network, extractor, device)
