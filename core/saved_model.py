"""A model's files: weights and configuration in a folder or on the Hugging Face Hub, and back.

What `config.json` says is a family's own; here it is only that it has one, and that weights fit it.
"""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import UserError
from .files import atomic_file, write_json
from .hub_cache import hub_snapshot

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
PIPELINE_INDEX = "model_index.json"


class Config(Protocol):
    """A family's settings."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        ...


class ConfigClass(Protocol):
    """The class of a family's settings."""

    def from_dict(self, values: Mapping[str, Any], /) -> Any:
        """Undo `to_dict`; raises `UserError` for settings of something else."""
        ...


class SavedModel(nn.Module, PyTorchModelHubMixin, ABC, library_name="tokkata", tags=["music-generation"]):
    """A model with `save_pretrained`, `push_to_hub` and `from_pretrained`; made from its settings alone."""

    config_class: ClassVar[ConfigClass]
    config: Config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def _save_pretrained(self, save_directory: Path) -> None:
        with atomic_file(save_directory / WEIGHTS_NAME) as partial:
            save_file(self.state_dict(), partial, metadata={"format": "pt"})
        write_json(save_directory / CONFIG_NAME, self.config.to_dict())

    @classmethod
    def from_pretrained(  # type: ignore[override]  # takes no model_kwargs: config.json has them all
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str = "cpu",
    ) -> Self:
        """Load a model from a local folder or from the Hub, in evaluation mode.

        Raises `UserError` where `config.json` or `model.safetensors` is missing, and names the tensors that
        the weights lack, have too many, or have in another shape.
        """
        where = {
            "revision": revision,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "token": token,
            "local_files_only": local_files_only,
        }
        name = str(pretrained_model_name_or_path)
        config_file = find_file(name, CONFIG_NAME, where)
        weights_file = find_file(name, WEIGHTS_NAME, where)
        config = cls.config_class.from_dict(read_config(config_file))
        try:
            weights = load_file(weights_file, device=map_location)
        except SafetensorError as error:
            raise UserError(
                f"{weights_file} is damaged ({error}): download or save the model again"
            ) from error
        model: Self = cls(config).to(map_location)
        check_weights(model.state_dict(), weights, weights_file)
        model.load_state_dict(weights, strict=True)
        return model.eval()


def model_folder(path: Path) -> Path:
    """The folder of a model: `path`, or `path/model` where `path` is a run.

    Raises `UserError` if there is none.
    """
    for folder in (path, path / "model"):
        if (folder / CONFIG_NAME).is_file():
            return folder
    raise UserError(f"{path} holds no model: neither {CONFIG_NAME} nor model/{CONFIG_NAME} is there")


def kind_of(source: str) -> str | None:
    """The family that the `config.json` of a model says it is of: in a folder, of a run, or on the Hub.

    None where it says none; `diffusion` for a pipeline of `diffusers`. Raises `UserError` if there is no
    model.
    """
    folder = Path(source)
    if not folder.exists():
        folder = hub_snapshot(source, None, [(CONFIG_NAME,), (PIPELINE_INDEX,)], "model").folder
    if is_pipeline(folder):
        return "diffusion"
    if Path(source).exists():
        folder = model_folder(folder)
    kind = read_config(folder / CONFIG_NAME).get("kind")
    return None if kind is None else str(kind)


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds a pipeline of `diffusers`, whose parts lie in folders of their own."""
    return (folder / PIPELINE_INDEX).is_file() and not (folder / CONFIG_NAME).exists()


def read_config(file: Path) -> dict[str, Any]:
    """The settings in a `config.json`; raises `UserError` if it is not JSON."""
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON ({error}): download or save the model again") from error
    return values


def find_file(model_id: str, name: str, where: Mapping[str, Any]) -> Path:
    """The local path of a model's file, downloaded where `model_id` is no folder.

    `where` is what `hf_hub_download` takes besides. Raises `UserError` if there is no such file.
    """
    if Path(model_id).is_dir():
        path = Path(model_id) / name
        if not path.is_file():
            raise UserError(f"{model_id} holds no model: {name} is missing")
        return path
    try:
        return Path(hf_hub_download(model_id, name, **where))
    except (HFValidationError, EntryNotFoundError, HfHubHTTPError) as error:
        raise UserError(
            f"no model at {model_id!r}: it is neither a folder here nor a repository on the Hub"
            f" from which {name} can be had ({str(error).splitlines()[0]})"
        ) from error


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path) -> None:
    """Raise `UserError` that names all tensors in which a model and a file of weights differ."""
    reshaped = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": reshaped,
    }
    texts = [f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names]
    if texts:
        raise UserError(f"{file} does not fit its {CONFIG_NAME}; tensors {'; '.join(texts)}")
