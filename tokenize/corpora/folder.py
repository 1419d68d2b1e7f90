"""A folder of audio files as a corpus, with or without a metadata file beside them."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...core.audio import AUDIO_SUFFIXES, AudioError
from ...core.errors import UserError
from ...core.schema_corpora import FolderCorpus
from ..corpus import Clip, LabelTypes
from .columns import Row, describe
from .metadata import FILE_NAME, METADATA_FILES, read_metadata
from .split import complete_splits


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot list {error.filename} below data.root: {error.strerror}") from error


class Folder:
    """Every audio file under a folder, hidden files aside; nothing is ever written there."""

    def __init__(self, config: FolderCorpus):
        """List the folder and read its metadata.

        Raises `UserError` if `root` is missing, no folder, or holds no audio file, and if the metadata has a
        fault or says nothing of a file.
        """
        self.config = config
        found = self._find()
        audio = [name for name in found if name.lower().endswith(AUDIO_SUFFIXES)]
        metadata = [name for name in found if posixpath.basename(name) in METADATA_FILES and config.metadata]
        if not audio:
            raise UserError(f"data.root {config.root} holds no {', '.join(AUDIO_SUFFIXES)} file")
        rows = self._read(metadata)
        if metadata and not config.allow_unlisted:
            self._check_listed(audio, rows)
        self._clips, self.label_types = self._describe(audio, rows, metadata)

    def clips(self) -> Sequence[Clip]:
        """One clip a file or row, sorted by id, which is the path below `root` with forward slashes."""
        return self._clips

    def audio(self, clip: Clip) -> Path:
        """The file of `clip`; raises `AudioError` if only the metadata knows it."""
        path = self.config.root / clip.id
        if not os.path.lexists(path):  # a dangling link is there, and the reader says what is wrong with it
            raise AudioError("file is missing")
        return path

    def _find(self) -> list[str]:
        """Audio and metadata files by their path below `root`, sorted."""
        root = self.config.root
        if not root.exists():
            raise UserError(f"data.root {root} does not exist: give the folder that holds the audio files")
        if not root.is_dir():
            raise UserError(f"data.root {root} is a file: give the folder that holds the audio files")
        return sorted(self._walk(root))

    def _walk(self, root: Path) -> Iterator[str]:
        # Links to files count; links to folders are not followed, so that a link upwards cannot loop.
        for folder, _, files in os.walk(root, onerror=_refuse, followlinks=False):
            for file in files:
                is_audio = not file.startswith(".") and file.lower().endswith(AUDIO_SUFFIXES)
                if not is_audio and file not in METADATA_FILES:
                    continue
                name = (Path(folder) / file).relative_to(root).as_posix()
                if any("\ud800" <= letter <= "\udfff" for letter in name):  # bytes that are no UTF-8
                    raise UserError(f"data.root {root} holds {name!a}, whose name is not UTF-8: rename it")
                yield name

    def _read(self, metadata: Sequence[str]) -> dict[str, Row]:
        """The rows of all metadata files by the path below `root` that each is about."""
        kinds = {posixpath.basename(name): name for name in metadata}
        if len(kinds) > 1:
            raise UserError(
                f"data.root {self.config.root} holds {' and '.join(kinds.values())}: keep one format"
            )
        rows: dict[str, Row] = {}
        for name in metadata:
            for path, row in read_metadata(self.config.root, name).items():
                if path in rows:
                    raise UserError(f"{row.place}: '{path}' has a row already, {rows[path].place}")
                rows[path] = row
        return rows

    def _check_listed(self, audio: Sequence[str], rows: Mapping[str, Row]) -> None:
        unlisted = [name for name in audio if name not in rows]
        if unlisted:
            raise UserError(
                f"the metadata in data.root {self.config.root} has no row for {unlisted[0]}"
                + (f" and {len(unlisted) - 1} other files" if unlisted[1:] else "")
                + ": add what is missing, or set data.allow_unlisted to true"
            )

    def _describe(
        self, audio: Sequence[str], rows: Mapping[str, Row], metadata: Sequence[str]
    ) -> tuple[list[Clip], LabelTypes]:
        config = self.config
        ids = sorted({*audio, *rows})
        found = describe(
            [rows.get(name) or Row(f"file {name}", {}) for name in ids],
            config,
            ignored=[FILE_NAME],
            textual=any(name.endswith(".csv") for name in metadata),
        )
        label_types = dict(found.label_types)
        if config.label_from_parent:
            if "folder" in label_types:
                raise UserError(
                    "data.label_from_parent: the metadata has a column 'folder' already, rename it"
                )
            label_types["folder"] = str
            for name, labels in zip(ids, found.labels, strict=True):
                labels["folder"] = (config.root / name).parent.name
        groups = [posixpath.dirname(name) for name in ids] if config.group_by == "folder" else found.groups
        splits = complete_splits(
            dict(zip(ids, found.splits, strict=True)),
            {name: name if group is None else group for name, group in zip(ids, groups, strict=True)},
            config.valid_fraction,
            config.test_fraction,
        )
        clips = [
            Clip(
                id=name,
                split=splits[name],
                source=name,
                labels=labels,
                caption=self._caption(name, caption),
            )
            for name, labels, caption in zip(ids, found.labels, found.captions, strict=True)
        ]
        return clips, label_types

    def _caption(self, name: str, caption: str | None) -> str | None:
        """`caption`, or the words in the name of the file, if they are asked for."""
        if not self.config.caption_from_name or (caption or "").strip():
            return caption
        words = re.findall(r"[^\W\d_]+", posixpath.splitext(posixpath.basename(name))[0])
        return " ".join(words) or None
