"""Several corpora as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ...core.audio import AudioSource
from ..corpus import Clip, Corpus, LabelTypes


class Mixed:
    """The clips of several corpora, each with its own split; ids are prefixed with the corpus's position.

    Only the labels that every corpus has, with the same type, are kept: a column has to be filled in
    every row.
    """

    def __init__(self, corpora: Sequence[Corpus]):
        self.corpora = list(corpora)
        shared = set.intersection(*(set(corpus.label_types.items()) for corpus in self.corpora))
        self.label_types: LabelTypes = dict(sorted(shared, key=lambda item: item[0]))

    def clips(self) -> Sequence[Clip]:
        """All clips, sorted by id; raises `UserError` if a corpus has none."""
        clips = [
            dataclasses.replace(
                clip,
                id=f"{position}/{clip.id}",
                labels={name: clip.labels[name] for name in self.label_types},
            )
            for position, corpus in enumerate(self.corpora)
            for clip in corpus.clips()
        ]
        return sorted(clips, key=lambda clip: clip.id)

    def audio(self, clip: Clip) -> AudioSource:
        """Where the corpus that `clip` comes from has it."""
        position, _, member_id = clip.id.partition("/")
        return self.corpora[int(position)].audio(dataclasses.replace(clip, id=member_id))
