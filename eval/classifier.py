"""Audio classifiers (`core/hub_classifier.py`) for scores of what labels clips are given.

Shapes: B clips, N samples, W windows of a clip, L labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.device import best_device
from ..core.hub_classifier import HubClassifier, load_hub_classifier, num_windows, windows_of
from .embedding import Embedding, EmbeddingInfo, check_mono

WINDOW_S = 10.0
"""What most classifiers were trained on (AudioSet's clips); longer clips are cut."""
WINDOWS_AT_ONCE = 8


class Classifier(Embedding):
    """The probabilities of a classifier's labels, one frame for each 10 s begun.

    Mono at the rate that preprocessor_config.json says. A clip longer than 10 s is cut into windows of 10 s
    without overlap, the last of which is moved back to end with the clip; a shorter one is one window. Each
    goes through the model's own feature extractor. Probabilities are the softmax of the logits, of models
    that were trained with several labels a clip too, as audiocraft and stable-audio-metrics do it for their
    divergences. A clip's probabilities are the mean over its windows.
    """

    def __init__(self, info: EmbeddingInfo, classifier: HubClassifier) -> None:
        super().__init__(info)
        self.labels = classifier.labels
        """The name of each of the L labels."""
        self._classifier = classifier
        self._window = round(WINDOW_S * info.sample_rate)

    def frames(self, num_samples: int) -> int:
        """One for each 10 s begun."""
        return num_windows(num_samples, self._window)

    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to probabilities `[B, W, L]`."""
        check_mono(audio)
        windows = windows_of(audio[:, 0], self._window)
        pieces = torch.split(windows.flatten(0, 1), WINDOWS_AT_ONCE)
        found = torch.cat([torch.softmax(self._classifier.logits(piece), dim=-1) for piece in pieces])
        return found.reshape(*windows.shape[:2], len(self.labels))


def load_classifier(id: str, *, device: str | torch.device | None = None) -> Classifier:
    """The classifier `id`: a hub id, or a folder in the hub's layout.

    Raises `UserError` as `load_hub_classifier` does.
    """
    found = load_hub_classifier(id, device=torch.device(device) if device is not None else best_device())
    extractor = type(found.extractor).__name__
    info = EmbeddingInfo(
        name=f"classifier {id}",
        version=found.files.version,
        sample_rate=found.sample_rate,
        width=len(found.labels),
        frame_s=WINDOW_S,
        hop_s=WINDOW_S,
        preprocessing=f"windows of {WINDOW_S:g} s through {extractor}; softmax of the logits",
        source=found.files.source,
    )
    return Classifier(info, found)
