"""`metadata.csv` and `metadata.jsonl` beside audio files, as Hugging Face's AudioFolder has them."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import UserError
from .columns import Row

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"


def read_metadata(root: Path, name: str) -> dict[str, Row]:
    """The rows of the metadata file `name`, a path below `root`, by the file's path below `root`.

    The names in the file are relative to the folder that it lies in. Raises `UserError` with the line where
    it is not UTF-8, not in its format, names no file, one outside of `root`, or one twice.
    """
    text = _text(root / name, name)
    found: dict[str, Row] = {}
    for row in _csv_rows(text, name) if name.endswith(".csv") else _jsonl_rows(text, name):
        listed = row.values.get(FILE_NAME)
        if not isinstance(listed, str) or not listed:
            raise UserError(f"{row.place}: column '{FILE_NAME}' is empty, give the name of the audio file")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), listed))
        if path.startswith(("../", "/")) or path == "..":
            raise UserError(f"{row.place}: {FILE_NAME} '{listed}' lies outside of data.root {root}")
        if path in found:
            raise UserError(f"{row.place}: {FILE_NAME} '{listed}' has a row already, {found[path].place}")
        found[path] = row
    return found


def _text(path: Path, name: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {(error.strerror or 'input/output error').lower()}"
        ) from error
    try:
        return content.decode("utf-8-sig")  # spreadsheets put a byte order mark first
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name} line {line}: not UTF-8, save the file in that encoding") from error


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            place = f"{name} line {reader.line_num}"
            if not any(cells):
                continue
            if header is None:
                header = _header(cells, place)
            elif len(cells) != len(header):
                raise UserError(f"{place}: {len(cells)} cells, but the header has {len(header)}")
            else:
                yield Row(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{name} line {reader.line_num}: not CSV ({error})") from error
    if header is None:
        raise UserError(f"{name} is empty: a header with the column '{FILE_NAME}' is expected")


def _header(cells: list[str], place: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if FILE_NAME not in header:
        raise UserError(
            f"{place}: a column '{FILE_NAME}' is expected, and commas between columns; there are"
            f" {', '.join(header)}"
        )
    for column in header:
        if not column or header.count(column) > 1:
            raise UserError(f"{place}: column '{column}' is {'there twice' if column else 'without a name'}")
    return header


def _jsonl_rows(text: str, name: str) -> Iterator[Row]:
    # Not splitlines(), which also splits at characters that JSON leaves as they are, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not JSON ({error.msg})") from error
        if not isinstance(values, dict):
            raise UserError(f'{place}: an object such as {{"{FILE_NAME}": "a.wav"}} is expected')
        yield Row(place, values)
