"""What every language model over codec tokens has: a configuration, a loss, and a place on the Hub.

Shapes: B batch, K codebooks, T frames, V codebook size.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from ..core.conditions import Conditions, GivenConditions
from ..core.errors import UserError
from ..core.files import atomic_file, write_json
from .decoder import Prepared, Weights
from .patterns import Pattern

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """What decides the meaning of a model's tokens; each family adds what decides its shape."""

    kind: ClassVar[str]
    """The family, as recipes name it."""

    num_codebooks: int
    """K."""
    codebook_size: int
    """V."""
    frame_rate: float
    """Frames a second."""
    conditions: Conditions = field(default_factory=Conditions)
    """What the model is told about a clip; empty for nothing."""
    window_frames: int | None = None
    """Frames that the model was trained on at most; longer clips are generated in windows of this length.
    None: as long as one likes."""
    codec: Mapping[str, Any] = field(default_factory=dict)
    """The content of `codec.json`: which codec turns the tokens into audio."""

    def __post_init__(self) -> None:
        for name in ("num_codebooks", "codebook_size", "frame_rate"):
            if name in self.codec and self.codec[name] != getattr(self, name):
                raise UserError(
                    f"{name} is {getattr(self, name)} for the model but {self.codec[name]} for its codec"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`; raises `UserError` that names unknown or missing settings."""
        values = {name: value for name, value in values.items() if name != "kind"}
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known.keys())
        required = {
            name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING
        }
        missing = sorted(required - values.keys())
        if unknown or missing:
            raise UserError(
                f"this is not the {CONFIG_NAME} of a {cls.kind}:"
                f" unknown settings {unknown}, missing settings {missing}"
            )
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists, "conditions": Conditions.from_list(values.get("conditions", []))})

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return (
            {"kind": self.kind}
            | values
            | lists
            | {"conditions": self.conditions.to_list(), "codec": dict(self.codec)}
        )

    @property
    def special(self) -> int:
        """The token that stands where a codebook has none, and begins a clip: V."""
        return self.codebook_size


@dataclass
class LMLoss:
    """Cross-entropy of the tokens of a batch, in nats."""

    mean: Tensor  # scalar: over all tokens that count
    num_tokens: Tensor  # scalar int64: how many those are
    per_codebook: Tensor  # [K]: mean of each codebook; detached


# Wrappers such as FSDP look for tensors in what a module returns; they look into registered classes only.
register_dataclass(LMLoss, field_names=["mean", "num_tokens", "per_codebook"])


class LanguageModel(nn.Module, PyTorchModelHubMixin, ABC, library_name="tokkata", tags=["music-generation"]):
    """A language model over codes [B, K, T]; `forward` is its training loss.

    A family is a subclass with a configuration class of its own.
    """

    config_class: ClassVar[type[LMConfig]]
    config: LMConfig
    pattern: Pattern
    """In which order the model meets the tokens of a frame."""

    @abstractmethod
    def forward(
        self, codes: Tensor, conditions: GivenConditions | None = None, frame_mask: Tensor | None = None
    ) -> LMLoss:
        """The loss of codes [B, K, T] under `conditions` (None: all hidden).

        Frames that are False in `frame_mask` [B, T] (the padding of a short clip) are neither seen nor
        counted, so a padded clip has exactly the loss of the clip alone.
        """

    @abstractmethod
    def prepare(self, weights: Weights = "fp32") -> Prepared:
        """This model for generation, reading its weights in that format.

        Raises `UserError` for a format that it does not have here.
        """

    def clip_flops(self, num_frames: int, num_states: Mapping[str, int]) -> float | None:
        """Floating-point operations of a training step for one clip, which has `num_states` vectors of each
        sequence among the conditions; None where nobody has counted them.
        """
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    # ------------------------------------------------------------------------------------------------- hub

    def _save_pretrained(self, save_directory: Path) -> None:
        with atomic_file(save_directory / WEIGHTS_NAME) as partial:
            save_file(self.state_dict(), partial, metadata={"format": "pt"})
        write_json(save_directory / CONFIG_NAME, self.config.to_dict())

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card of the bare facts, for a folder or repository that has none."""
        config = self.config
        return ModelCard(
            "---\nlibrary_name: tokkata\npipeline_tag: text-to-audio\ntags: [music-generation]\n---\n"
            f"# A {config.kind} over {config.num_codebooks} codebooks of {config.codebook_size}\n\n"
            f"{sum(p.numel() for p in self.parameters()):,} parameters, {config.frame_rate:g} frames a"
            f" second; conditions: {', '.join(config.conditions.names) or 'none'}.\n"
        )

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
        model = cls(config).to(map_location)
        _check_weights(model.state_dict(), weights, weights_file)
        model.load_state_dict(weights, strict=True)
        return model.eval()


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


def _check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path) -> None:
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
