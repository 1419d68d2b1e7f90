"""What the research datasets share: the index of an unpacked archive, and the files that it names.

A single file that an index names and that is not there is no fault of the index: its clip is rejected when
it is read. An index that is missing or of another format is one sentence.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...core.audio import AudioError
from ...core.errors import UserError
from ..corpus import Clip
from .dataset_facts import DatasetFacts


def check_root(root: Path, facts: DatasetFacts) -> None:
    """Raises `UserError` if `root` is no folder; for a packed archive it says how to unpack it."""
    if root.is_file() and root.name in {archive.name for archive in facts.archives if archive.is_packed}:
        raise UserError(_unpack_first(root, facts))
    if not root.is_dir():
        fault = "is a file" if root.exists() else "does not exist"
        raise UserError(
            f"{root} {fault}: give the folder that {facts.name} was unpacked into ({facts.homepage})"
        )


def _unpack_first(archive: Path, facts: DatasetFacts) -> str:
    folder = shlex.quote(str(archive.parent))
    quoted = shlex.quote(str(archive))
    if archive.name.endswith(".tar.gz"):
        command = f"tar -xzf {quoted} -C {folder}"
    elif archive.name.endswith(".zip"):
        command = f"unzip {quoted} -d {folder}"
    else:  # one of the numbered parts of a zip file
        whole = shlex.quote(str(archive.with_suffix("")))
        command = f"cat {whole}.* > {whole} && unzip {whole} -d {folder}"
    return f"{facts.name} is still packed in {archive}: run `{command}`"


def refuse_packed(root: Path, facts: DatasetFacts, prefix: str = "") -> None:
    """Raises `UserError`, with the command, if an archive whose name begins with `prefix` lies in `root`."""
    for archive in facts.archives:
        packed = archive.is_packed and archive.name.startswith(prefix)
        if packed and (root / archive.name).is_file():
            raise UserError(_unpack_first(root / archive.name, facts))


def first_with(root: Path, folders: Collection[str], holds: Callable[[Path], bool]) -> Path | None:
    """The first of `folders` below `root` (`.` is `root` itself) for which `holds` is true."""
    return next((root / name for name in folders if holds(root / name)), None)


def missing_index(path: Path, facts: DatasetFacts, source: str | None = None) -> UserError:
    """The sentence for an index that is not there; `source` is its address, if not the home page."""
    return UserError(f"{facts.name} needs {path}, which is missing: get it from {source or facts.homepage}")


def _other_format(path: Path, facts: DatasetFacts, fault: str) -> UserError:
    return UserError(f"{path} is not {facts.name}'s index: {fault}; get it from {facts.homepage}")


def _read_text(path: Path, facts: DatasetFacts) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _other_format(path, facts, "it is not UTF-8 text") from error
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise UserError(f"{path} cannot be read: {reason}") from error


class Row:
    """One entry of an index; its values are checked when they are asked for."""

    def __init__(self, values: dict[str, Any], where: str, path: Path, facts: DatasetFacts) -> None:
        """`where` says which entry it is, for people: `line 3`."""
        self._values = values
        self._where = where
        self._path = path
        self._facts = facts

    @property
    def names(self) -> list[str]:
        """The columns, in order."""
        return list(self._values)

    def fault(self, text: str) -> UserError:
        """The sentence for a fault of this entry."""
        return _other_format(self._path, self._facts, f"{self._where}: {text}")

    def integer(self, name: str) -> int:
        """A whole number, written as such or as text; raises `UserError`."""
        value = self._values.get(name)
        try:
            if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
                return int(value)
        except ValueError:
            pass
        raise self.fault(f"'{name}' must be a whole number, not {value!r}")

    def text(self, name: str) -> str:
        """A string, not empty; raises `UserError`."""
        value = self._values.get(name)
        if isinstance(value, str) and value:
            return value
        raise self.fault(f"'{name}' must be text, not {value!r}")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; raises `UserError`."""
        value = self._values.get(name)
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        raise self.fault(f"'{name}' must be a list of texts, not {value!r}")

    def path(self, name: str) -> str:
        """A path below the dataset's folder, with forward slashes; raises `UserError` for any other."""
        value = self.text(name)
        if value.startswith("/") or ".." in value.split("/"):
            raise self.fault(f"'{name}' leads out of the dataset's folder: {value!r}")
        return value


def read_table(
    path: Path, facts: DatasetFacts, columns: Collection[str], delimiter: str = ","
) -> Iterator[Row]:
    """The rows of a csv file with a header; raises `UserError` if one of `columns` is missing."""
    reader = csv.DictReader(io.StringIO(_read_text(path, facts), newline=""), delimiter=delimiter)
    try:
        _require(columns, reader.fieldnames or (), path, facts)
        for row in reader:
            if None in row or None in row.values():
                raise _other_format(path, facts, f"line {reader.line_num} has another number of columns")
            yield Row(row, f"line {reader.line_num}", path, facts)
    except csv.Error as error:
        raise _other_format(path, facts, f"line {reader.line_num}: {error}") from error


def read_object(
    path: Path, facts: DatasetFacts, shrink: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Any]:
    """A JSON file that holds an object; `shrink` replaces each object inside it as soon as it is read."""
    try:
        values = json.loads(_read_text(path, facts), object_hook=shrink)
    except ValueError as error:
        raise _other_format(path, facts, f"no JSON ({error})") from error
    if not isinstance(values, dict):
        raise _other_format(path, facts, "a JSON object is expected")
    return values


def read_columns(path: Path, facts: DatasetFacts, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a JSON file that holds one object a column, `{column: {row: value}}`."""
    values = read_object(path, facts)
    _require(columns, values, path, facts)
    rows = values[columns[0]]
    for name in columns:
        if not isinstance(values[name], dict) or values[name].keys() != rows.keys():
            raise _other_format(path, facts, f"'{name}' must hold one value for each row")
    for number in rows:
        yield Row({name: values[name][number] for name in columns}, f"row {number}", path, facts)


def _require(columns: Collection[str], found: Collection[str], path: Path, facts: DatasetFacts) -> None:
    lacking = [name for name in columns if name not in found]
    if lacking:
        raise _other_format(path, facts, f"it has no '{lacking[0]}'")


def sort_clips(clips: Iterable[Clip], index: Path, facts: DatasetFacts) -> list[Clip]:
    """The clips by id; raises `UserError` if `index` names one of them twice."""
    ordered = sorted(clips, key=lambda clip: clip.id)
    for one, other in itertools.pairwise(ordered):
        if one.id == other.id:
            raise _other_format(index, facts, f"it names {one.id} twice")
    return ordered


class MissingFile(AudioError):
    """A file that an index names and that is not there."""


def named_file(root: Path, name: str) -> Path:
    """The file `name` below `root`; raises `MissingFile`, and `AudioError` if that cannot be told."""
    path = root / name
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFile("file is missing") from error
    except OSError as error:
        raise AudioError(f"cannot be opened: {(error.strerror or 'input/output error').lower()}") from error
    return path
