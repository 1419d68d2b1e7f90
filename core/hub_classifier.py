"""Audio classifiers, in their `transformers` ports.

None comes with Tokkata, and none is downloaded unless it is named.

Shapes: B clips, N samples, n samples of a window, W windows of a clip, L labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from .errors import UserError
from .hub_model import HubModel, find_hub_model, load_hub_model

_EXTRACTOR = "preprocessor_config.json"


@dataclass(frozen=True)
class HubClassifier:
    """A classifier with its own feature extractor."""

    labels: tuple[str, ...]
    """The name of each of the L labels."""
    files: HubModel
    """Where it comes from."""
    model: Any
    extractor: Any
    device: torch.device

    @property
    def sample_rate(self) -> int:
        """In Hz, as its preprocessor_config.json says."""
        rate: int = self.extractor.sampling_rate
        return rate

    @property
    def is_multi_label(self) -> bool:
        """Whether its configuration says that a clip can have several labels."""
        return bool(self.model.config.problem_type == "multi_label_classification")

    @torch.no_grad()
    def logits(self, windows: Tensor) -> Tensor:
        """Mono windows `[B, n]` to `[B, L]`."""
        samples = [window.numpy() for window in windows.float().cpu()]
        features = self.extractor(samples, sampling_rate=self.sample_rate, return_tensors="pt")
        found: Tensor = self.model(
            **{name: value.to(self.device) for name, value in features.items()}
        ).logits.float()
        return found


def num_windows(num_samples: int, length: int) -> int:
    """One for each `length` samples begun."""
    return max(1, math.ceil(num_samples / length))


def windows_of(audio: Tensor, length: int) -> Tensor:
    """Audio `[B, N]` in windows `[B, W, n]` of `length` samples without overlap.

    The last is moved back to end with the clip; a shorter clip is one window.
    """
    num_samples = audio.shape[1]
    size = min(length, num_samples)
    starts = [min(i * size, num_samples - size) for i in range(num_windows(num_samples, length))]
    return torch.stack([audio[:, start : start + size] for start in starts], dim=1)


def load_hub_classifier(id: str, *, device: torch.device, revision: str | None = None) -> HubClassifier:
    """The classifier `id`: a hub id, or a folder in the hub's layout.

    Raises `UserError` if it is neither here nor can be downloaded, or is no audio classifier that
    `transformers` has a class for (code of a repository is never run).
    """
    files = find_hub_model("classifier", id, id, None, (_EXTRACTOR,), revision)
    # `auto_map` would name code of the repository's own.
    values = {key: value for key, value in files.config.items() if key not in ("auto_map", "model_type")}
    kind = files.config.get("model_type")
    known = transformers.models.auto.modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES
    if kind not in known:
        raise UserError(
            f"classifier {id}: the model in {files.folder} is of type '{kind}', which transformers has no"
            " audio classifier for: choose another"
        )
    config = transformers.AutoConfig.for_model(kind, **values)
    network = load_hub_model("classifier", id, getattr(transformers, known[kind]), config, files)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(files.folder, local_files_only=True)
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return HubClassifier(labels, files, network.to(device), extractor, device)
