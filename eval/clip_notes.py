"""What is said of the clips of a folder: captions and labels, from the files beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import read_jsonl
from ..tokenize.corpora.metadata import METADATA_FILES, read_metadata
from .folder_audio import SAMPLES

CAPTIONS = ("caption", "text")  # in this order


@dataclass(frozen=True)
class ClipNote:
    """What is said of one clip."""

    caption: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label → value, as text."""


NOTHING = ClipNote()


def clip_notes(folder: Path) -> dict[str, ClipNote]:
    """What is said of the files of `folder`, by their path in it; empty if nothing is.

    Read are `metadata.csv` or `metadata.jsonl` (column `file_name`; captions are in `caption` or `text`) and
    the `samples.jsonl` of a run, all in the folder itself. Raises `UserError` for a file that is damaged.
    """
    found: dict[str, ClipNote] = {}
    for name in METADATA_FILES:
        if (folder / name).is_file():
            found |= {file: _note(row.values) for file, row in read_metadata(folder, name).items()}
    if (folder / SAMPLES).is_file():
        try:
            rows = read_jsonl(folder / SAMPLES)
            found |= {row["file"]: _note({**row["labels"], **row}) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / SAMPLES} is damaged: generate the clips again") from error
    return found


def _note(values: Mapping[str, Any]) -> ClipNote:
    told = {name: str(value) for name, value in values.items() if value is not None}
    caption = next((text for name in CAPTIONS if (text := told.get(name, "").strip())), None)
    return ClipNote(caption, told)
