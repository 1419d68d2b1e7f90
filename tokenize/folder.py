"""A folder of audio files as a corpus."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.audio import AUDIO_SUFFIXES, load_audio
from ..core.errors import UserError
from ..core.schema import FolderCorpus, Split
from .corpus import Clip, ClipAudio


def stable_unit(text: str) -> float:
    """A number in [0, 1) that is the same for the same text everywhere (SHA-256, first eight bytes)."""
    eight = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return (eight >> 11) / 2**53  # a float holds 53 bits; all 64 could round up to 1


def split_by_hash(ids: Sequence[str], valid_fraction: float, test_fraction: float) -> dict[str, Split]:
    """A split for each id by its own hash, so that a file added later moves no other file.

    The interval [0, 1) is cut into test, valid and train, in this order. In a small folder a split may
    come out empty. So that every wanted split has a file, from three files on, an empty one takes from
    the fullest the file whose hash lies nearest; one or two files all go to train.
    """
    shares: dict[Split, float] = {
        "test": test_fraction,
        "valid": valid_fraction,
        "train": max(0.0, 1.0 - test_fraction - valid_fraction),
    }
    wanted = [split for split, share in shares.items() if share > 1e-9]
    if len(ids) < 3 and "train" in wanted:
        return dict.fromkeys(ids, "train")
    hashes = {name: stable_unit(name) for name in ids}
    splits: dict[str, Split] = {}
    for name, unit in hashes.items():
        in_valid = unit < test_fraction + valid_fraction
        splits[name] = "test" if unit < test_fraction else "valid" if in_valid else "train"
    for split in wanted:
        if split in splits.values() or len(ids) < 3:
            continue
        fullest = max(shares, key=list(splits.values()).count)
        members = sorted((unit, name) for name, unit in hashes.items() if splits[name] == fullest)
        comes_later = list(shares).index(split) > list(shares).index(fullest)
        splits[members[-1 if comes_later else 0][1]] = split
    return splits


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot list {error.filename} below data.root: {error.strerror}") from error


class Folder:
    """Every audio file under a folder, hidden files aside; nothing is ever written there."""

    def __init__(self, config: FolderCorpus):
        self.config = config
        self.label_types: Mapping[str, type[int] | type[str]] = (
            {"folder": str} if config.label_from_parent else {}
        )

    def clips(self) -> Sequence[Clip]:
        """One clip a file, sorted by id, which is the path below `root` with forward slashes.

        Raises `UserError` if `root` is missing, no folder, or holds no audio file.
        """
        ids = self._find()
        splits = split_by_hash(ids, self.config.valid_fraction, self.config.test_fraction)
        return [
            Clip(
                id=name,
                split=splits[name],
                source=name,
                labels={"folder": self._path(name).parent.name} if self.config.label_from_parent else {},
            )
            for name in ids
        ]

    def read(self, clip: Clip, sample_rate: int, channels: int) -> ClipAudio:
        """The audio of `clip`; the hash is of the file's bytes. Raises `AudioError` as `load_audio` does."""
        path = self._path(clip.id)
        samples = load_audio(path, sample_rate, channels)
        with path.open("rb") as file:
            return ClipAudio(samples, hashlib.file_digest(file, "sha256").hexdigest())

    def _path(self, name: str) -> Path:
        return self.config.root / name

    def _find(self) -> list[str]:
        root = self.config.root
        if not root.exists():
            raise UserError(f"data.root {root} does not exist: give the folder that holds the audio files")
        if not root.is_dir():
            raise UserError(f"data.root {root} is a file: give the folder that holds the audio files")
        found = []
        # Links to files count; links to folders are not followed, so that a link upwards cannot loop.
        for folder, _, files in os.walk(root, onerror=_refuse, followlinks=False):
            for file in files:
                if file.startswith(".") or not file.lower().endswith(AUDIO_SUFFIXES):
                    continue
                name = (Path(folder) / file).relative_to(root).as_posix()
                if any("\ud800" <= letter <= "\udfff" for letter in name):  # bytes that are no UTF-8
                    raise UserError(f"data.root {root} holds {name!a}, whose name is not UTF-8: rename it")
                found.append(name)
        if not found:
            raise UserError(f"data.root {root} holds no {', '.join(AUDIO_SUFFIXES)} file")
        return sorted(found)
