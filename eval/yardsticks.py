"""What sets of clips are measured by: an embedding, a classifier's labels, or a codec's tokens.

Each is an `Embedding` by its form, whatever its frames are, and a list of scores of them.

Shapes: N clips, T frames, D width, L labels, K codebooks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from .class_scores import Direction, inception_score, kl_paired, kl_unpaired, label_accuracy, text_score
from .classifier import Classifier
from .code_frames import CodeFrames
from .compare_sets import FrameSet
from .embedding import Embedding, TextEmbedding
from .gaussian_stats import GaussianStats
from .measured import Score, no_score, single
from .metrics import METRICS, measure
from .token_statistics import token_statistics

FRECHET = ("fad", "fad-inf", "per-song")
"""Scores that need no more of the reference than its statistics."""
OF_TEXT = ("clap-score",)
OF_LABELS = ("kl", "inception-score", "label-accuracy")
OF_TOKENS = ("tokens",)


class Yardstick(ABC):
    """Frames of clips, and scores of sets of them."""

    is_gaussian = False
    """Whether sets are compared as Gaussians in the frames' space: for statistics, plots and warnings."""

    def __init__(self, embedding: Embedding, names: Sequence[str], seed: int) -> None:
        self.embedding = embedding
        self.names = single(names)
        """The scores, in order."""
        self._seed = seed

    @abstractmethod
    def measure(self, item: FrameSet, reference: FrameSet | None, stats: GaussianStats) -> list[Score]:
        """The scores of a set against the reference, of which there may be no more than its statistics.

        What cannot be measured has no value, and a note that says why.
        """


class InEmbedding(Yardstick):
    """Distances and overlaps of clouds of frames; in an embedding that holds sentences, the text score."""

    is_gaussian = True

    def measure(self, item: FrameSet, reference: FrameSet | None, stats: GaussianStats) -> list[Score]:
        """The scores; those that need them with the frames of the reference."""
        found = measure([name for name in self.names if name in FRECHET], item.frames, stats, self._seed)
        others = [name for name in self.names if name in METRICS and name not in FRECHET]
        found += measure(others, item.frames, reference.frames if reference else stats, self._seed)
        by_name = {score.name: score for score in found}
        return [by_name.get(name) or self._text_score(item) for name in self.names]

    def _text_score(self, item: FrameSet) -> Score:
        if not isinstance(self.embedding, TextEmbedding):
            return no_score("clap-score", f"{self.embedding.info.name} holds no sentences")
        told = [
            (frames, note.caption)
            for frames, note in zip(item.frames, item.notes, strict=True)
            if note.caption
        ]
        if not told:
            return no_score("clap-score", "no clip has a caption")
        texts = self.embedding.embed_text([caption for _, caption in told]).cpu().numpy()
        audio = np.stack([frames.mean(axis=0, dtype=np.float64) for frames, _ in told])
        return text_score(audio, texts, seed=self._seed)


class InLabels(Yardstick):
    """What a classifier makes of the clips."""

    def __init__(
        self, classifier: Classifier, names: Sequence[str], seed: int, label: str | None = None
    ) -> None:
        """`label` is the label that says which of the classifier's a clip should have."""
        super().__init__(classifier, names, seed)
        self._labels = classifier.labels
        self._label = label

    def measure(self, item: FrameSet, reference: FrameSet | None, stats: GaussianStats) -> list[Score]:
        """The scores of the probabilities."""
        generated = _probabilities(item)
        return [self._score(name, item, generated, reference) for name in self.names]

    def _score(self, name: str, item: FrameSet, generated: np.ndarray, reference: FrameSet | None) -> Score:
        if name == "inception-score":
            return inception_score(generated, seed=self._seed)
        if name == "label-accuracy":
            return self._accuracy(item, generated)
        if reference is None:
            return no_score(name, "there is no audio of the reference")
        target = _probabilities(reference)
        direction: Direction = (
            "generated-reference" if name.endswith("generated-reference") else "reference-generated"
        )
        if name.startswith("kl-unpaired"):
            return kl_unpaired(generated, target, direction, seed=self._seed)
        place = {clip: index for index, clip in enumerate(reference.names)}
        rows = [place.get(clip) for clip in item.counterparts or item.names]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            return no_score(
                name, f"{len(known)} of {len(rows)} clips have a counterpart of their name in the reference"
            )
        return kl_paired(generated, target[known], direction, seed=self._seed)

    def _accuracy(self, item: FrameSet, generated: np.ndarray) -> Score:
        if self._label is None:
            return no_score("label-accuracy", "no label was named")
        wanted = [note.labels.get(self._label) for note in item.notes]
        told = [(index, label) for index, label in enumerate(wanted) if label in self._labels]
        if not told:
            return no_score(
                "label-accuracy", f"no clip has a label '{self._label}' that the classifier knows"
            )
        found = [self._labels[int(generated[index].argmax())] for index, _ in told]
        return label_accuracy(found, [str(label) for _, label in told])


class InTokens(Yardstick):
    """What a codec makes of the clips."""

    def __init__(self, frames: CodeFrames, seed: int) -> None:
        super().__init__(frames, OF_TOKENS, seed)
        self._codebook_size = frames.codebook_size

    def measure(self, item: FrameSet, reference: FrameSet | None, stats: GaussianStats) -> list[Score]:
        """The statistics of the codes."""
        if reference is None:
            return [no_score(name, "there is no audio of the reference") for name in self.names]
        ours, theirs = ([frames.T.astype(np.int64) for frames in part.frames] for part in (item, reference))
        return token_scores(ours, theirs, self._codebook_size, self._seed)


def token_scores(
    generated: Sequence[np.ndarray], reference: Sequence[np.ndarray], codebook_size: int, seed: int
) -> list[Score]:
    """`token_statistics` of codes [K, T_i], without values where there are too few."""
    try:
        return token_statistics(generated, reference, codebook_size, seed=seed)
    except ValueError as error:
        return [no_score(name, str(error)) for name in single(OF_TOKENS)]


def _probabilities(item: FrameSet) -> np.ndarray:
    """[N, L]: the mean over each clip's windows."""
    return np.stack([frames.mean(axis=0, dtype=np.float64) for frames in item.frames])
