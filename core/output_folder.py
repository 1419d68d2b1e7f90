"""Where a command writes what it makes."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError


def new_folder(out: Path | None, source: str) -> Path:
    """`out`, or else the next free folder for what the model `source` makes; it need not be there yet.

    Raises `UserError` if `out` is a file or not empty.
    """
    folder = out or _next_folder(source)
    _check_empty(folder)
    return folder


def _next_folder(source: str) -> Path:
    """`generated/NAME-001`, or the first higher number that is free."""
    parts = (
        [part for part in Path(source).resolve().parts if part != "model"] if Path(source).exists() else []
    )
    name = parts[-1] if parts else source.rstrip("/").rpartition("/")[2]
    number = 1
    while (folder := Path("generated") / f"{name}-{number:03d}").exists():
        number += 1
    return folder


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: choose a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--out {folder} is not empty, and nothing is overwritten: choose another folder")
