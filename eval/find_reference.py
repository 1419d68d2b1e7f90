"""What `--reference` names: a folder of audio, a file of statistics, or one on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..core.errors import UserError

_ON_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>.+\.safetensors)")
_NO_DOWNLOAD: tuple[type[Exception], ...] = (
    HFValidationError,
    LocalEntryNotFoundError,
    *HfHubHTTPError.__bases__,
)


def find_reference(name: str) -> Path:
    """The folder or file that `name` is, downloaded if it is `OWNER/NAME/FILE.safetensors` of a dataset.

    What is in the Hub's cache needs no network. Raises `UserError` if it is nowhere.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    parts = _ON_HUB.fullmatch(name)
    if parts is None:
        raise UserError(
            f"there is no reference {name}: give a folder of audio, a file that 'tokkata stats build' wrote,"
            " or OWNER/NAME/FILE.safetensors of a dataset on the Hugging Face Hub"
        )
    cached = huggingface_hub.try_to_load_from_cache(parts["repo"], parts["file"], repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(huggingface_hub.hf_hub_download(parts["repo"], parts["file"], repo_type="dataset"))
    except _NO_DOWNLOAD as error:
        raise UserError(
            f"the reference {name} is neither here nor in the Hugging Face cache, and cannot be downloaded"
            f" now: run `hf download --repo-type dataset {parts['repo']} {parts['file']}` where there is a"
            " network"
        ) from error
