"""A corpus: a list of clips with labels, whose audio is read one clip at a time.

Shapes: C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..core.schema import Split

Label = int | str


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
    """Audio with labels. `tokenize/folder.py` is the shortest example."""

    label_types: Mapping[str, type[int] | type[str]]
    """The label columns that every clip has."""

    def clips(self) -> Sequence[Clip]:
        """All clips, sorted by id, without reading audio; raises `UserError` if there are none."""
        ...

    def read(self, clip: Clip, sample_rate: int, channels: int) -> ClipAudio:
        """The audio of `clip` at `sample_rate` Hz, mixed to `channels`; raises `AudioError` if unusable."""
        ...
