"""Files at their authors' addresses: taken from where they lie, or downloaded there once, and checked."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants

from .errors import UserError
from .files import atomic_file

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ReleasedFile:
    """Weights at their official address."""

    url: str
    path: Path
    """Where the file lies on this machine, or is downloaded to."""
    sha256: str | None
    """The hash of its content, or the start of it where no more is known; None where nothing is."""


def released_file(what: str, file: ReleasedFile) -> Path:
    """The path of `file` on this machine, downloaded if it is not there.

    Raises `UserError`, which begins with `what`, if it cannot be had or is not the file that was published.
    """
    if not file.path.is_file():
        _download(what, file.url, file.path)
    if file.sha256 is not None and not sha256_of(file.path).startswith(file.sha256):
        raise UserError(
            f"the weights of {what} are damaged, their hash is not that of {file.url}:"
            f" delete {file.path}, and they are downloaded again"
        )
    return file.path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(what: str, url: str, path: Path) -> None:
    """Write what is at `url` to `path`, whole or not at all."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UserError(_without(what, url, path, "HF_HUB_OFFLINE is set"))
    print(f"downloading {url} to {path}", file=sys.stderr)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, atomic_file(path) as partial:
            with partial.open("wb") as file:
                shutil.copyfileobj(answer, file)
            # A connection that is cut looks like the end of the file.
            promised = int(answer.headers.get("Content-Length", partial.stat().st_size))
            if partial.stat().st_size != promised:
                raise http.client.IncompleteRead(b"", promised)
    except (OSError, http.client.HTTPException) as error:
        why = str(getattr(error, "reason", error)) or type(error).__name__
        raise UserError(_without(what, url, path, why)) from error


def _without(what: str, url: str, path: Path, why: str) -> str:
    return (
        f"{what} has no weights on this machine, and they cannot be downloaded now ({why}):"
        f" download {url} where there is a network, and put it at {path}"
    )
