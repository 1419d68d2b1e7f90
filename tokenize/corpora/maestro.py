"""MAESTRO v3: piano performances from a competition, aligned with the MIDI that the instrument recorded.

    <root>/maestro-v3.0.0.csv (or .json)
    <root>/2004/*.wav, *.midi …

The archive unpacks into a folder `maestro-v3.0.0`; `root` is that folder or the one above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ...core.schema_corpora import MaestroCorpus
from ..corpus import Clip, LabelTypes
from .dataset_facts import DATASETS
from .dataset_index import (
    Row,
    check_root,
    first_with,
    missing_index,
    named_file,
    read_columns,
    read_table,
    refuse_packed,
    sort_clips,
)
from .split import SPLIT_NAMES

_NAME = "maestro-v3.0.0"
_COLUMNS = ("canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename")


class Maestro:
    """The performances with their official splits.

    The authors' split keeps compositions apart, but titles are not normalised, and five of the published
    index (composer and title, word for word) are in two splits. They are left where they are.
    """

    facts = DATASETS["maestro"]

    def __init__(self, config: MaestroCorpus):
        self.config = config
        self.label_types: LabelTypes = {"composer": str, "title": str, "year": int, "midi": str}
        """`midi` is the path of the aligned MIDI file below `root`."""

    def clips(self) -> Sequence[Clip]:
        """One clip a performance, sorted by id, which is `audio_filename` without its suffix.

        Raises `UserError` if the index is missing or of another format.
        """
        root = self.config.root
        check_root(root, self.facts)
        folder = first_with(root, (".", _NAME), _holds_index)
        if folder is None:
            refuse_packed(root, self.facts)
            raise missing_index(root / f"{_NAME}.csv", self.facts)
        below = folder.relative_to(root)
        index = folder / f"{_NAME}.csv"
        if not index.is_file():
            index = folder / f"{_NAME}.json"
        clips = (self._clip(row, PurePosixPath(below.as_posix())) for row in self._rows(index))
        return sort_clips(clips, index, self.facts)

    def audio(self, clip: Clip) -> Path:
        """The file of `clip`, stereo at 44.1 or 48 kHz; raises `AudioError` if it is missing."""
        return named_file(self.config.root, clip.source)

    def _rows(self, index: Path) -> Iterator[Row]:
        read = read_table if index.suffix == ".csv" else read_columns
        return read(index, self.facts, _COLUMNS)

    def _clip(self, row: Row, below: PurePosixPath) -> Clip:
        split = row.text("split")
        if split not in SPLIT_NAMES:
            raise row.fault(f"'split' must be train, validation or test, not '{split}'")
        audio = row.path("audio_filename")
        return Clip(
            id=str(PurePosixPath(audio).with_suffix("")),
            split=SPLIT_NAMES[split],
            source=str(below / audio),
            labels={
                "composer": row.text("canonical_composer"),
                "title": row.text("canonical_title"),
                "year": row.integer("year"),
                "midi": str(below / row.path("midi_filename")),
            },
        )


def _holds_index(folder: Path) -> bool:
    return any((folder / f"{_NAME}.{suffix}").is_file() for suffix in ("csv", "json"))
