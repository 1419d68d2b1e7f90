"""What columns say of clips: labels of one kind each, captions, splits and groups.

The columns come from a metadata file, a dataset or the members of a tar file; the rules are the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...core.errors import UserError
from ...core.label import Label
from ...core.schema_corpora import FolderCorpus, HubDatasetCorpus, WebDatasetCorpus
from ...core.sections import Split
from ..corpus import LabelTypes
from .split import SPLIT_NAMES

# Columns of the token store: what a clip has under these names is no label.
RESERVED = {
    "id", "split", "codes", "latents", "latents_scale", "gains", "num_frames", "num_samples", "source",
    "sha256", "caption", "original_sample_rate", "original_channels", "original_duration_s", "trim_start_s",
    "gain_db", "loudness_lufs",
}  # fmt: skip

_CAPTIONS = ("caption", "text", "txt")  # in this order

# A name such as 007 is neither.
_NUMBER = re.compile(r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"-?[1-9]\d*|0", re.ASCII)
_INT64 = range(-(2**63), 2**63)

Kind = Literal["int", "float", "str", "tags"]
_TYPES: dict[Kind, type[Any]] = {"int": int, "float": float, "str": str, "tags": tuple}
_WORDS: dict[Kind, str] = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "tags": "a list of names",
}
_EMPTY: dict[Kind, Label] = {"str": "", "tags": ()}  # no number can stand for none

Settings = FolderCorpus | HubDatasetCorpus | WebDatasetCorpus


@dataclass(frozen=True)
class Row:
    """What is said of one clip."""

    place: str
    """Where it says so, for people, such as `metadata.csv line 3`."""
    values: Mapping[str, Any]
    """Column → value; None or no entry where there is none."""


@dataclass(frozen=True)
class Described:
    """What the columns say, for each of the rows in their order."""

    label_types: LabelTypes
    labels: list[dict[str, Label]]
    captions: list[str | None]
    splits: list[Split | None]
    groups: list[str | None]


def describe(
    rows: Sequence[Row], settings: Settings, *, ignored: Sequence[str] = (), textual: bool = False
) -> Described:
    """Read labels, captions, splits and groups out of `rows`.

    Args:
        rows: one a clip.
        settings: which columns are what.
        ignored: columns that only say which clip a row is about.
        textual: the values are the cells of a text file, and it has to be guessed which are numbers.

    Raises `UserError` if a setting names a column that is not there, if a column mixes kinds or lacks a
    number, or if a split has an unknown name.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    caption = _chosen(settings.caption, names, "data.caption") or next(
        (name for name in _CAPTIONS if name in names), None
    )
    own_groups = isinstance(settings, FolderCorpus) and settings.group_by == "folder"
    group = None if own_groups else _chosen(settings.group_by, names, "data.group_by")
    kinds: dict[str, Kind] = {}
    columns: dict[str, list[Label]] = {}
    for name, wanted in _label_names(settings, names, {caption, *ignored}).items():
        kind = wanted or _kind(rows, name, textual, explicit=settings.labels is not None)
        if kind is not None:
            kinds[name] = kind
            columns[name] = [_label(row, name, kind) for row in rows]
    return Described(
        label_types={name: _TYPES[kind] for name, kind in kinds.items()},
        labels=[{name: column[i] for name, column in columns.items()} for i in range(len(rows))],
        captions=[_caption(row, caption) for row in rows],
        splits=[_split(row) for row in rows],
        groups=[_group(row, group) for row in rows],
    )


def _chosen(name: str | None, names: Sequence[str], setting: str) -> str | None:
    if name is not None and name not in names:
        raise UserError(f"{setting} '{name}' is no column: there are {', '.join(names) or 'none'}")
    return name


def _label_names(settings: Settings, names: Sequence[str], taken: set[str | None]) -> dict[str, Kind | None]:
    """The columns that become labels, each with its kind where the settings name it."""
    if settings.labels is None:
        return {name: None for name in names if name not in taken | RESERVED}
    listed = settings.labels if isinstance(settings.labels, dict) else dict.fromkeys(settings.labels)
    for name in listed:
        _chosen(name, names, "data.labels:")
        if name in RESERVED:
            raise UserError(f"data.labels: '{name}' is the name of a column of the token store: rename it")
    return dict(listed)


# --- one value


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _kind_of(value: Any) -> Kind | None:
    """The kind of label that a value can be; None for what can be none, such as a list of numbers."""
    match value:
        case bool() | str():
            return "str"
        case int():
            return "int" if value in _INT64 else None
        case float():
            return "float" if math.isfinite(value) else None
        case list() | tuple():
            return "tags" if all(isinstance(item, str) for item in value) else None
    return None


def _kind_of_cell(cell: str) -> Kind:
    if _WHOLE.fullmatch(cell) and int(cell) in _INT64:
        return "int"
    return "float" if _NUMBER.fullmatch(cell) and math.isfinite(float(cell)) else "str"


def _kind(rows: Sequence[Row], name: str, textual: bool, explicit: bool) -> Kind | None:
    """The kind that all values of a column have in common; None where it cannot be a label, and need not."""
    kind: Kind | None = None
    first = ""
    for row in rows:
        value = row.values.get(name)
        if _is_empty(value):
            continue
        # Where the first cell is text, all are: a title may be `1999`.
        found = ("str" if kind == "str" else _kind_of_cell(str(value))) if textual else _kind_of(value)
        if found is None:
            if explicit:
                raise UserError(f"{row.place}: {name} is {_shown(value)}, which cannot be a label")
            return None
        if kind is None:
            kind, first = found, row.place
        elif {kind, found} == {"int", "float"}:
            kind = "float"
        elif kind != found:
            raise UserError(
                f"{row.place}: {name} is {_shown(value)}, but {_WORDS[kind]} in {first}: make the column one"
                f" kind, or name its kind in data.labels, such as {{{name}: str}}"
            )
    if kind is None and explicit:
        raise UserError(f"data.labels: column '{name}' is empty in every row")
    return kind


def _label(row: Row, name: str, kind: Kind) -> Label:
    """The value of a column as a label of its kind."""
    value = row.values.get(name)
    if _is_empty(value):
        if kind not in _EMPTY:
            raise UserError(
                f"{row.place}: {name} is empty, and a number is needed in every row: fill it in, or leave the"
                " column out of data.labels"
            )
        return _EMPTY[kind]
    label = _converted(value, kind)
    if label is None:
        raise UserError(f"{row.place}: {name} is {_shown(value)}, but {_WORDS[kind]} is expected")
    return label


def _converted(value: Any, kind: Kind) -> Label | None:
    if kind == "tags":
        if isinstance(value, str):  # a cell
            return tuple(tag for part in value.split(";") if (tag := part.strip()))
        return tuple(value) if _kind_of(value) == "tags" else None
    if kind == "str":
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value) if isinstance(value, int | float | str) else None
    found = _kind_of_cell(value) if isinstance(value, str) else _kind_of(value)
    if found == "int":
        return int(value) if kind == "int" else float(value)
    return float(value) if found == kind == "float" else None


def _caption(row: Row, name: str | None) -> str | None:
    value = row.values.get(name) if name else None
    if _is_empty(value):
        return None
    if not isinstance(value, str):
        raise UserError(f"{row.place}: {name} is {_shown(value)}, but a caption is text")
    return value


def _split(row: Row) -> Split | None:
    value = row.values.get("split")
    if _is_empty(value):
        return None
    split = SPLIT_NAMES.get(str(value).lower())
    if split is None:
        raise UserError(f"{row.place}: split is {_shown(value)}, but train, valid or test is expected")
    return split


def _group(row: Row, name: str | None) -> str | None:
    value = row.values.get(name) if name else None
    return None if _is_empty(value) else str(value)


def _shown(value: Any) -> str:
    text = str(value)
    return f"'{text[:40]}…'" if len(text) > 40 else f"'{text}'"
