"""A corpus: a list of clips with labels, and where the audio of each is.

Shapes: C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..core.audio import AudioSource
from ..core.audio_stream import AS_IT_IS, open_audio
from ..core.label import Label
from ..core.schema import Audio
from ..core.sections import Split

LabelTypes = Mapping[str, type[int] | type[float] | type[str] | type[tuple]]  # type: ignore[type-arg]
"""The label columns of a corpus; `tuple` stands for tags."""


@dataclass(frozen=True)
class Clip:
    """One item of a corpus, before its audio is read."""

    id: str
    """Stable name, the same on every machine and in every run."""
    split: Split
    source: str
    """Where the audio comes from, for people: a path below the corpus root, or how it was made."""
    labels: Mapping[str, Label] = field(default_factory=dict)
    """What is known of it, such as `pitch`; every clip of a corpus has the same keys."""
    caption: str | None = None


@dataclass(frozen=True)
class ClipAudio:
    """The audio of one clip."""

    samples: np.ndarray  # [C, N] float32 in -1…1
    sha256: str
    """Of the file's bytes, or of the samples where the corpus makes them itself."""


class Corpus(Protocol):
    """Audio with labels. `tokenize/corpora/folder.py` is a short example."""

    label_types: LabelTypes
    """The label columns that every clip has."""

    def clips(self) -> Sequence[Clip]:
        """All clips, sorted by id, without reading audio; raises `UserError` if there are none."""
        ...

    def audio(self, clip: Clip) -> AudioSource:
        """Where the samples of `clip` are: a file, the bytes of one, or an array. Nothing is decoded here.

        Several threads call this at once. Raises `AudioError` if they cannot be had.
        """
        ...


def read_clip(
    corpus: Corpus, clip: Clip, sample_rate: int, channels: int, settings: Audio = AS_IT_IS
) -> ClipAudio:
    """The whole audio of `clip` at `sample_rate` Hz with `channels`, prepared as `settings` say.

    Raises `AudioError` if it is unusable.
    """
    stream = open_audio(corpus.audio(clip), sample_rate, channels, settings)
    return ClipAudio(stream.read(), stream.sha256)
