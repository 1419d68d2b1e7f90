"""MagnaTagATune: clips of twenty-nine seconds with the tags that players of a game agreed on.

    <root>/annotations_final.csv    tab separated: clip_id, one column a tag (0 or 1), mp3_path
    <root>/0/*.mp3 … <root>/f/*.mp3

The sixteen folders may also lie in `mp3` below `root`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...core.schema_corpora import MagnaTagATuneCorpus
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
)

_INDEX = "annotations_final.csv"
_FOLDERS = "0123456789abcdef"
_MP3 = re.compile(r"(?P<folder>[0-9a-f])/(?P<track>[^/]+?)(?:-\d+-\d+)?\.mp3")


class MagnaTagATune:
    """The clips, split by folder as is usual: 0-b train, c valid, d-f test.

    The clips of a track all follow the first folder that has one of them. In the published index no track
    lies in two folders, though artists do.
    """

    facts = DATASETS["magnatagatune"]

    def __init__(self, config: MagnaTagATuneCorpus):
        self.config = config
        self.label_types: LabelTypes = {"tags": tuple}

    def clips(self) -> Sequence[Clip]:
        """One clip a row, sorted by id, which is `mp3_path` without its suffix.

        Raises `UserError` if the index is missing or of another format.
        """
        root = self.config.root
        check_root(root, self.facts)
        if not (root / _INDEX).is_file():
            raise missing_index(root / _INDEX, self.facts)
        folder = first_with(root, (".", "mp3"), _holds_folders)
        if folder is None:
            refuse_packed(root, self.facts)
        below = (folder or root).relative_to(root)
        tags = self._tags()
        if self.config.top_tags is not None:
            tags = keep_top_tags(tags, self.config.top_tags)
        splits = split_by_track(tags)
        return [
            Clip(
                id=path.removesuffix(".mp3"),
                split=splits[path],
                source=(below / path).as_posix(),
                labels={"tags": tags[path]},
            )
            for path in sorted(tags, key=lambda path: path.removesuffix(".mp3"))
        ]

    def audio(self, clip: Clip) -> Path:
        """The file of `clip`; raises `AudioError` if it is missing."""
        return named_file(self.config.root, clip.source)

    def _tags(self) -> dict[str, tuple[str, ...]]:
        """The tags of each `mp3_path`."""
        tags: dict[str, tuple[str, ...]] = {}
        for row in read_table(self.config.root / _INDEX, self.facts, ("clip_id", "mp3_path"), "\t"):
            path = row.path("mp3_path")
            if not _MP3.fullmatch(path):
                raise row.fault(f"'mp3_path' must be such as 0/name.mp3, not '{path}'")
            if path in tags:
                raise row.fault(f"'{path}' is named twice")
            tags[path] = _tags_of(row)
        return tags


def _tags_of(row: Row) -> tuple[str, ...]:
    names = [name for name in row.names if name not in ("clip_id", "mp3_path")]
    for name in names:
        if row.text(name) not in ("0", "1"):
            raise row.fault(f"'{name}' must be 0 or 1, not '{row.text(name)}'")
    return tuple(name for name in names if row.text(name) == "1")


def keep_top_tags(tags: Mapping[str, tuple[str, ...]], num_tags: int) -> dict[str, tuple[str, ...]]:
    """Only the tags that most clips have; of equally frequent ones the first by alphabet."""
    counts = Counter(name for names in tags.values() for name in names)
    top = set(sorted(counts, key=lambda name: (-counts[name], name))[:num_tags])
    return {path: tuple(name for name in names if name in top) for path, names in tags.items()}


def split_by_track(paths: Iterable[str]) -> dict[str, Split]:
    """The split of each path, such as `c/artist-album-01-title-30-59.mp3`, by its track's first folder."""
    first: dict[str, str] = {}
    parsed = {}
    for path in paths:
        match = _MP3.fullmatch(path)
        assert match is not None, path
        track, folder = match["track"], match["folder"]
        parsed[path] = track
        first[track] = min(folder, first.get(track, folder))
    return {path: _split_of(first[track]) for path, track in parsed.items()}


def _split_of(folder: str) -> Split:
    return "train" if folder < "c" else "valid" if folder == "c" else "test"


def _holds_folders(path: Path) -> bool:
    return any((path / name).is_dir() for name in _FOLDERS)
