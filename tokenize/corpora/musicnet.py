"""MusicNet: recordings of classical music, mono at 44.1 kHz, with every note's time and instrument.

    <root>/musicnet_metadata.csv
    <root>/train_data/<id>.wav     <root>/train_labels/<id>.csv     likewise test_…

The archive unpacks into a folder `musicnet`, while the metadata is a file of its own: `root` is the folder
that holds both, and each of the two may lie in it or in `musicnet` below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...core.schema_corpora import MusicNetCorpus
from ...core.sections import Split
from ..corpus import Clip, LabelTypes
from .dataset_facts import DATASETS
from .dataset_index import (
    Row,
    check_root,
    first_with,
    missing_index,
    named_file,
    read_table,
    refuse_packed,
    sort_clips,
)
from .split import split_by_hash

SAMPLE_RATE = 44100
"""Of all recordings; the times of notes are counted in its samples."""

_METADATA = "musicnet_metadata.csv"
_COLUMNS = ("id", "composer", "composition", "movement", "ensemble")
_FOLDERS = (".", "musicnet")
_Part = Literal["train", "test"]

# The extended test set of the authors, for recordings that are in neither folder.
_TEST_IDS = frozenset({1759, 1819, 2106, 2191, 2298, 2303, 2382, 2416, 2556, 2628})


@dataclass(frozen=True)
class Notes:
    """The M notes of a recording, by onset."""

    onset_s: np.ndarray  # [M] float64
    offset_s: np.ndarray  # [M] float64
    instrument: np.ndarray  # [M] int64, General MIDI program, counted from 1
    pitch: np.ndarray  # [M] int64, MIDI pitch


def read_notes(path: Path) -> Notes:
    """Read a recording's label file; raises `UserError` if it is missing or of another format."""
    facts = DATASETS["musicnet"]
    if not path.is_file():
        raise missing_index(path, facts)
    rows = [
        (row.integer("start_time"), row.integer("end_time"), row.integer("instrument"), row.integer("note"))
        for row in read_table(path, facts, ("start_time", "end_time", "instrument", "note"))
    ]
    notes = np.array(sorted(rows), dtype=np.int64).reshape(-1, 4)
    return Notes(notes[:, 0] / SAMPLE_RATE, notes[:, 1] / SAMPLE_RATE, notes[:, 2], notes[:, 3])


@dataclass(frozen=True)
class _Recording:
    row: Row
    id: int
    part: _Part

    @property
    def piece(self) -> str:
        """The composition, whose movements are recordings of their own."""
        return f"{self.row.text('composer')}: {self.row.text('composition')}"


class MusicNet:
    """The recordings, with the official test split and a share of the other pieces for validation.

    A piece of which any movement is in `test` is never taken for `valid`. Its other movements stay in
    `train`, where the authors have put them.
    """

    facts = DATASETS["musicnet"]

    def __init__(self, config: MusicNetCorpus):
        self.config = config
        self.label_types: LabelTypes = {
            "musicnet_id": int,
            "composer": str,
            "composition": str,
            "movement": str,
            "ensemble": str,
            "notes": str,
        }
        """`notes` is the path of the label file below `root`, for `read_notes`."""

    def clips(self) -> Sequence[Clip]:
        """One clip a recording, sorted by id, which is MusicNet's own number.

        Raises `UserError` if the metadata is missing or of another format.
        """
        root = self.config.root
        check_root(root, self.facts)
        folder = first_with(root, _FOLDERS, lambda path: (path / _METADATA).is_file())
        data = first_with(root, _FOLDERS, _holds_data)
        if data is None:
            refuse_packed(root, self.facts)
        if folder is None:
            raise missing_index(root / _METADATA, self.facts)
        recordings = self._recordings(folder / _METADATA, data or root)
        valid = self._valid_pieces(recordings)
        below = (data or root).relative_to(root)
        clips = (self._clip(one, valid, below) for one in recordings)
        return sort_clips(clips, folder / _METADATA, self.facts)

    def audio(self, clip: Clip) -> Path:
        """The file of `clip`; raises `AudioError` if it is missing."""
        return named_file(self.config.root, clip.source)

    def _recordings(self, metadata: Path, data: Path) -> list[_Recording]:
        parts = _find_parts(data)
        recordings = []
        for row in read_table(metadata, self.facts, _COLUMNS):
            number = row.integer("id")
            part: _Part = "test" if number in _TEST_IDS else "train"
            recordings.append(_Recording(row, number, parts.get(number, part)))
        return recordings

    def _valid_pieces(self, recordings: Sequence[_Recording]) -> set[str]:
        tested = {one.piece for one in recordings if one.part == "test"}
        pieces = sorted({one.piece for one in recordings} - tested)
        splits = split_by_hash(pieces, self.config.valid_fraction, 0.0)
        return {piece for piece, split in splits.items() if split == "valid"}

    def _clip(self, one: _Recording, valid: set[str], below: Path) -> Clip:
        row = one.row
        split: Split = "valid" if one.piece in valid else one.part
        return Clip(
            id=str(one.id),
            split=split,
            source=(below / f"{one.part}_data" / f"{one.id}.wav").as_posix(),
            labels={
                "musicnet_id": one.id,
                "composer": row.text("composer"),
                "composition": row.text("composition"),
                "movement": row.text("movement"),
                "ensemble": row.text("ensemble"),
                "notes": (below / f"{one.part}_labels" / f"{one.id}.csv").as_posix(),
            },
        )


def _holds_data(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("train_data", "test_data"))


def _find_parts(data: Path) -> Mapping[int, _Part]:
    """Where each recording lies whose audio or label file is there."""
    found: dict[int, _Part] = {}
    parts: tuple[_Part, ...] = ("train", "test")
    for part in parts:
        for pattern in (f"{part}_labels/*.csv", f"{part}_data/*.wav"):
            found |= {int(file.stem): part for file in data.glob(pattern) if file.stem.isdecimal()}
    return found
