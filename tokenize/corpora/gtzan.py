"""GTZAN: clips of thirty seconds in ten genres, with the fault-filtered split.

    <root>/genres/<genre>/<genre>.00000.au        the first archive
    <root>/genres_original/<genre>/*.wav       copies that hold wav files
    <root>/train_filtered.txt, valid_filtered.txt, test_filtered.txt      if another split is wanted

The folder of genres may be `root` itself, and all files may lie in it without folders of genres. GTZAN has
no split of its own, and holds repetitions and other faults; the fault-filtered split (Kereliuk, Sturm and
Larsen, arXiv:1507.04761) leaves these out and keeps the artists of its three parts apart. torchaudio carries
its three lists; lists that lie in the folder take their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from torchaudio.datasets import gtzan as published

from ...core.audio import AudioError
from ...core.errors import UserError
from ...core.schema_corpora import GtzanCorpus
from ...core.sections import Split
from ..corpus import Clip, LabelTypes
from .dataset_facts import DATASETS, GTZAN_LISTS
from .dataset_index import check_root, first_with, missing_index, named_file

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")

_FOLDERS = ("genres", "genres_original", "Data/genres_original", ".")
_SUFFIXES = (".au", ".wav")  # where a clip is there twice, the first is taken
_SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_PUBLISHED: dict[Split, list[str]] = {
    "train": published.filtered_train,
    "valid": published.filtered_valid,
    "test": published.filtered_test,
}
_CLIP = re.compile(rf"(?:.*/)?(?P<name>(?P<genre>{'|'.join(GENRES)})\.\d{{5}})(?:\.[a-z0-9]+)?")


class Gtzan:
    """The clips that the three lists of a split name."""

    facts = DATASETS["gtzan"]

    def __init__(self, config: GtzanCorpus):
        self.config = config
        self.label_types: LabelTypes = {"genre": str}

    def clips(self) -> Sequence[Clip]:
        """One clip a listed file, sorted by id, `<genre>/<genre>.00000`.

        Raises `UserError` if there is no folder of genres, and for a list that is missing, names something
        else, or names what another list has named.
        """
        root = self.config.root
        check_root(root, self.facts)
        folder = first_with(root, _FOLDERS, _holds_genres)
        if folder is None:
            raise UserError(
                f"{root} holds no folder of GTZAN's genres, such as genres/blues: unpack GTZAN there"
                f" ({self.facts.homepage})"
            )
        files = _find(folder)
        clips: dict[str, Clip] = {}
        for split in _SPLITS:
            for genre, name in self._names(folder, split):
                clip_id = f"{genre}/{name}"
                if clip_id in clips:
                    raise UserError(
                        f"{self._list(folder, split)} names {name}, which is in the split"
                        f" {clips[clip_id].split} already: get the three lists from {GTZAN_LISTS}"
                    )
                file = files.get(name, folder / genre / f"{name}.wav")
                source = file.relative_to(root).as_posix()
                clips[clip_id] = Clip(id=clip_id, split=split, source=source, labels={"genre": genre})
        return sorted(clips.values(), key=lambda clip: clip.id)

    def audio(self, clip: Clip) -> Path:
        """The file of `clip`; raises `AudioError` if it is missing, or an .au file without its header.

        libsndfile would take such a file for headerless µ-law, and read noise from whatever is in it.
        """
        path = named_file(self.config.root, clip.source)
        if path.suffix == ".au" and _first_bytes(path) not in (b".snd", b""):
            raise AudioError("not audio: no .au header")
        return path

    def _names(self, folder: Path, split: Split) -> Iterator[tuple[str, str]]:
        """Genre and name of each clip of a split."""
        if any(self._list(folder, other) for other in _SPLITS):
            path = self._list(folder, split)
            if path is None:
                raise missing_index(self.config.root / _list_name(split), self.facts, GTZAN_LISTS)
            yield from _read_list(path)
        else:
            yield from ((name.partition(".")[0], name) for name in _PUBLISHED[split])

    def _list(self, folder: Path, split: Split) -> Path | None:
        """The list of a split, if it lies in `root`, beside the folder of genres, or in it."""
        places = (self.config.root, folder.parent, folder)
        return next((file for place in places if (file := place / _list_name(split)).is_file()), None)


def _list_name(split: Split) -> str:
    return f"{split}_filtered.txt"


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise AudioError(f"cannot be opened: {(error.strerror or 'input/output error').lower()}") from error


def _holds_genres(folder: Path) -> bool:
    return any((folder / genre).is_dir() or any(folder.glob(f"{genre}.[0-9]*")) for genre in GENRES)


def _find(folder: Path) -> dict[str, Path]:
    """The file of each clip that is there, by its name without suffix."""
    found: dict[str, Path] = {}
    for suffix in _SUFFIXES:
        for pattern in (f"*{suffix}", f"*/*{suffix}"):
            for file in sorted(folder.glob(pattern)):
                found.setdefault(file.stem, file)
    return found


def _read_list(path: Path) -> Iterator[tuple[str, str]]:
    """The genre and name of each line, such as `blues/blues.00029.au`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: get it from {GTZAN_LISTS}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _CLIP.fullmatch(line.strip())
        if match is None:
            raise UserError(
                f"line {number} of {path} names no clip of GTZAN, but {line.strip()!r}: get the list from"
                f" {GTZAN_LISTS}"
            )
        yield match["genre"], match["name"]
