"""Files of a model on the Hugging Face Hub: from the cache where they are, downloaded where they are not.

The libraries ask the network even for what is cached, and without one they try again for half a minute a
file. Here the cache comes first: a model that was downloaded once loads without a network, and stays the
same. `hf download ID` brings a newer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import UserError

_TIMEOUT_S = 5.0

# huggingface_hub has changed its HTTP library before; the bases of its own error are those of the one in use.
_NO_DOWNLOAD: tuple[type[Exception], ...] = (HFValidationError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True)
class Snapshot:
    """A model's files on this machine."""

    folder: Path
    revision: str
    """The commit that they are of."""


def hub_snapshot(id: str, revision: str | None, layouts: Sequence[Sequence[str]], what: str) -> Snapshot:
    """The folder with the files of the model `id`, downloaded if they are not in the cache.

    Args:
        id: owner/name on the Hub.
        revision: commit, branch or tag; the main branch, as the cache knows it, if None.
        layouts: sets of files, such as `("config.json", "model.safetensors")`; the first that is there whole
            is taken.
        what: what to call it in messages: `codec`, `model`.

    Raises `UserError` if no set of files is cached or can be downloaded.
    """
    try:
        for files in layouts:
            cached = _cached(id, revision, files)
            if cached is not None:
                return cached
        return _download(id, revision, layouts, what)
    except GatedRepoError as error:
        raise UserError(
            f"{what} {id} is open only to those who accepted its licence:"
            f" accept it at https://huggingface.co/{id}, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what} {id} has no revision '{revision}' on the Hugging Face Hub") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{what} {id} is neither a folder nor on the Hugging Face Hub;"
            " if it is private there, run `hf auth login`"
        ) from error
    except _NO_DOWNLOAD as error:
        raise UserError(not_found(id, revision, what)) from error


def _cached(id: str, revision: str | None, files: Sequence[str]) -> Snapshot | None:
    paths = [huggingface_hub.try_to_load_from_cache(id, file, revision=revision) for file in files]
    found = [Path(path) for path in paths if isinstance(path, str)]
    if len(found) < len(files):
        return None
    folder = found[0].parents[len(Path(files[0]).parts) - 1]
    return Snapshot(folder, folder.name)


def _download(id: str, revision: str | None, layouts: Sequence[Sequence[str]], what: str) -> Snapshot:
    # Asks once and not for long; snapshot_download alone would wait as long as the system lets it.
    listing = huggingface_hub.HfApi().model_info(id, revision=revision, timeout=_TIMEOUT_S)
    there = {file.rfilename for file in listing.siblings or []}
    for files in layouts:
        if there.issuperset(files):
            folder = Path(
                huggingface_hub.snapshot_download(id, revision=listing.sha, allow_patterns=list(files))
            )
            return Snapshot(folder, folder.name)
    needed = " or ".join(" with ".join(files) for files in layouts)
    raise UserError(f"{what} {id} on the Hugging Face Hub lacks the files that are needed: {needed}")


def not_found(id: str, revision: str | None, what: str, weights: str = "model.safetensors") -> str:
    """What to tell a user whose model `id` is not on this machine and cannot be brought to it."""
    if Path(id).exists():
        return f"{id} is not a {what} in the hub's layout: config.json and {weights} are needed"
    pinned = f" --revision {revision}" if revision else ""
    return (
        f"{what} {id} is neither a folder nor in the Hugging Face cache, and cannot be downloaded now:"
        f" run `hf download {id}{pinned}` where there is a network, or give a folder in the hub's layout"
    )
