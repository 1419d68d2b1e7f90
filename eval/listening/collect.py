"""From folders of audio files to the items of a listening test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...core.audio import AUDIO_SUFFIXES
from ...core.errors import UserError


@dataclass(frozen=True)
class Collection:
    """The files of a test."""

    paths: dict[str, dict[str, Path]]
    """By system and item; every system has every item."""
    paired: bool
    """Whether items are file names that all folders share; else they are numbers."""
    num_left_out: int
    """Files that are no part of the test, because other folders lack them."""

    @property
    def items(self) -> list[str]:
        """The items' names, sorted."""
        return sorted(next(iter(self.paths.values())))


def collect(folders: Mapping[str, Path]) -> Collection:
    """Match the audio files of `folders` (by system) by name where all share some, else by number.

    Raises `UserError` for a folder that is not there, holds no audio, or two files of one name.
    """
    found = {system: _audio_files(folder) for system, folder in folders.items()}
    shared = set.intersection(*(set(files) for files in found.values()))
    total = sum(len(files) for files in found.values())
    if shared:
        paths = {system: {name: files[name] for name in sorted(shared)} for system, files in found.items()}
        return Collection(paths, True, total - len(shared) * len(found))
    num = min(len(files) for files in found.values())
    numbers = [f"{k + 1:03d}" for k in range(num)]
    paths = {
        system: dict(zip(numbers, [files[name] for name in sorted(files)], strict=False))
        for system, files in found.items()
    }
    return Collection(paths, False, total - num * len(found))


def _audio_files(folder: Path) -> dict[str, Path]:
    """Audio files directly in `folder` by their names without suffix."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a folder of audio files")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in AUDIO_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise UserError(f"{folder} has two files named {path.stem}: items are told apart by their names")
        files[path.stem] = path
    if not files:
        raise UserError(f"{folder} has no audio files ({', '.join(AUDIO_SUFFIXES)})")
    return files


def read_prompts(folder: Path | None, items: list[str]) -> dict[str, str]:
    """The words for each item from `<item>.txt` in `folder`; raises `UserError` if an item has none."""
    if folder is None:
        return {}
    prompts = {}
    for item in items:
        path = folder / f"{item}.txt"
        try:
            prompts[item] = path.read_text(encoding="utf-8").strip()[:500]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: every item needs its prompt there, as text") from error
    return prompts
