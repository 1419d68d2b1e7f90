"""Networks in the hub's layout: found on the Hugging Face Hub, in its cache or in a folder, and loaded whole.

Nothing that a repository says is run: its own code is never loaded, and pickled files are read as tensors
alone.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from .errors import UserError
from .hub_cache import hub_snapshot
from .progress import hide_library_bars
from .released_file import sha256_of

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class HubModel:
    """A model's files on this machine."""

    folder: Path
    version: str
    """Commit on the Hub; for a folder, the start of its weights' SHA-256."""
    source: str
    """Address on the Hub, or the folder."""
    config: dict[str, Any]
    """What its config.json says."""


def find_hub_model(
    what: str, name: str, id: str, weights: Path | None, files: Sequence[str], revision: str | None = None
) -> HubModel:
    """The model `id`, or the folder `weights` in its stead, with `config.json`, weights and `files`.

    Messages call it `what`, such as `embedding`, and by its `name`. Raises `UserError` if it is neither here
    nor can be downloaded, or files are missing or no JSON.
    """
    folder = weights if weights is not None else Path(id)
    needed = ("config.json", *files)
    if weights is None and not folder.exists():
        layouts = [(*needed, file) for file in _WEIGHTS]
        snapshot = hub_snapshot(id, revision, layouts, what)
        return HubModel(snapshot.folder, snapshot.revision, f"{_HUB}/{id}", _read_config(snapshot.folder))
    there = [folder / file for file in _WEIGHTS if (folder / file).is_file()]
    missing = [file for file in needed if not (folder / file).is_file()]
    if not there:
        missing.append(" or ".join(_WEIGHTS))
    if missing:
        raise UserError(
            f"{what} {name}: {folder} is not a model in the hub's layout, it lacks {', '.join(missing)}"
        )
    return HubModel(folder, sha256_of(there[0])[:12], str(folder), _read_config(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: download it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} describes no model: download it again")
    return config


def load_hub_model(
    what: str, name: str, model_class: Any, config: Any, model: HubModel, may_lack: Collection[str] = ()
) -> Any:
    """A `transformers` model in float32 with frozen weights, from the files of `model`.

    Weights that the architecture has no place for, such as another task's head, are left out; a repository
    of a bare network and one of a network with a head load alike.

    Raises `UserError` if weights are damaged, missing (but for those named in `may_lack`), or of another
    shape.
    """
    hide_library_bars()
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.filterwarnings("ignore", category=FutureWarning)
            network, report = model_class.from_pretrained(
                model.folder,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # told below, with names
                output_loading_info=True,
                weights_only=True,
                local_files_only=True,
            )
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{what} {name}: the weights in {model.folder} are damaged: download them again"
        ) from error
    mismatched = [found if isinstance(found, str) else found[0] for found in report["mismatched_keys"]]
    faults = {"missing": set(report["missing_keys"]) - set(may_lack), "of another shape": set(mismatched)}
    told = [f"{kind}: {', '.join(sorted(keys)[:3])}" for kind, keys in faults.items() if keys]
    if told:
        raise UserError(
            f"{what} {name}: the weights in {model.folder} do not fit its config.json; {'; '.join(told)}"
        )
    return network.requires_grad_(False).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing a table of the weights that were left out."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
