"""A folder to a repository on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from .errors import UserError
from .files import PARTIAL_PREFIX

_ADDRESS = {"model": "https://huggingface.co/", "dataset": "https://huggingface.co/datasets/"}


def upload_folder(
    folder: Path, repository: str, kind: Literal["model", "dataset"], *, private: bool, message: str
) -> str:
    """Upload all files in `folder` but partial ones to `repository`, made if it is not there yet.

    Returns its address. Raises `UserError` where nobody is logged in, the name is none, and for faults of the
    network.
    """
    api = HfApi()
    try:
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            ignore_patterns=[f"{PARTIAL_PREFIX}*"],
            commit_message=message,
        )
    except LocalTokenNotFoundError as error:
        raise UserError("nobody is logged in at the Hugging Face Hub: run `hf auth login`") from error
    except HFValidationError as error:
        raise UserError(f"'{repository}' is no name of a repository: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{repository} could not be written: {str(error).splitlines()[0]}") from error
    return _ADDRESS[kind] + repository
