"""Where a MusicGen comes from: the Hub, its cache, a folder in the hub's layout, or a `transformers` model.

Whatever it is, what comes out is its configuration and the tensors of its language model, in float32. Those
of the text encoder and the codec that a repository holds beside them are left where they are: Tokkata loads
both by their own names.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import MusicgenConfig, MusicgenDecoderConfig, MusicgenMelodyConfig
from transformers.models.musicgen_melody.configuration_musicgen_melody import MusicgenMelodyDecoderConfig

from ...core.errors import UserError
from ...core.hub_cache import hub_snapshot

CONFIGS: dict[str, Any] = {
    config.model_type: config
    for config in (MusicgenConfig, MusicgenMelodyConfig, MusicgenDecoderConfig, MusicgenMelodyDecoderConfig)
}
"""What `config.json` calls each kind of MusicGen, and the class that knows its settings."""

_CONFIG = "config.json"
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_WEIGHTS = (_SAFE, f"{_SAFE}.index.json", _PICKLED, f"{_PICKLED}.index.json")

_OTHERS = ("text_encoder.", "audio_encoder.")


@dataclass(frozen=True)
class MusicgenSource:
    """What `TransformerLM.from_musicgen` starts from."""

    name: str
    """For messages."""
    config: Any
    """The configuration, one of `CONFIGS`."""
    tensors: dict[str, Tensor]
    """Those of the language model and of the projections into it, float32 on the CPU."""

    @property
    def is_bare(self) -> bool:
        """Whether it is a decoder alone, which knows no text encoder and no codec."""
        return str(self.config.model_type).endswith("_decoder")

    @property
    def is_melody(self) -> bool:
        """Whether conditions are prepended, and not attended to by cross-attention."""
        return str(self.config.model_type).startswith("musicgen_melody")

    @property
    def decoder(self) -> Any:
        """The configuration of the decoder."""
        return self.config if self.is_bare else self.config.decoder


def read_config(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What `config.json` of a model says, of whatever kind; raises `UserError` if there is none."""
    folder = Path(source)
    if not folder.exists():
        folder = hub_snapshot(str(source), revision, [(_CONFIG,)], "model").folder
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source} holds no model: its {_CONFIG} is missing or no JSON") from error
    if not isinstance(config, dict):
        raise UserError(f"{source} holds no model: its {_CONFIG} describes none")
    return config


def musicgen_source(source: str | Path | nn.Module, revision: str | None = None) -> MusicgenSource:
    """The MusicGen that `source` is or names; raises `UserError` if it cannot be had or is something else."""
    if isinstance(source, nn.Module):
        name = type(source).__name__
        config = getattr(source, "config", None)
        _check_type(name, getattr(config, "model_type", None))
        tensors = {key: t for key, t in source.state_dict().items() if not key.startswith(_OTHERS)}
    else:
        name = str(source)
        values = read_config(source, revision)
        _check_type(name, values.get("model_type"))
        try:
            config = CONFIGS[values["model_type"]].from_dict(values)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{name}: its {_CONFIG} describes no MusicGen: download it again") from error
        tensors = _read_tensors(source, revision)
    return MusicgenSource(name, config, {key: t.detach().cpu().float() for key, t in tensors.items()})


def _check_type(name: str, found: str | None) -> None:
    if found not in CONFIGS:
        raise UserError(
            f"{name} is no MusicGen: its type is '{found}', not {' or '.join(map(repr, CONFIGS))}"
        )


def _read_tensors(source: str | Path, revision: str | None) -> dict[str, Tensor]:
    folder = Path(source)
    if not folder.exists():
        layouts = [(_CONFIG, file) for file in _WEIGHTS]
        snapshot = hub_snapshot(str(source), revision, layouts, "model")
        folder = snapshot.folder
        main = _weights_in(folder, str(source))
        if main.name.endswith(".index.json"):
            files = (_CONFIG, main.name, *_shards(main))
            folder = hub_snapshot(str(source), snapshot.revision, [files], "model").folder
    main = _weights_in(folder, str(source))
    names = _shards(main) if main.name.endswith(".index.json") else [main.name]
    tensors: dict[str, Tensor] = {}
    for name in names:
        read: Callable[[Path], Mapping[str, Tensor]] = _safe if name.endswith(".safetensors") else _unpickled
        try:
            tensors |= read(folder / name)
        except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{folder / name} is missing or damaged: download {source} again") from error
    return tensors


def _weights_in(folder: Path, name: str) -> Path:
    there = [folder / file for file in _WEIGHTS if (folder / file).is_file()]
    if not there:
        raise UserError(f"{name} holds no model: {_SAFE} is missing")
    return there[0]


def _shards(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} names no files of weights: download it again") from error


def _safe(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys() if not key.startswith(_OTHERS)}  # noqa: SIM118


def _unpickled(file: Path) -> dict[str, Tensor]:
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    return {key: t for key, t in tensors.items() if not key.startswith(_OTHERS)}
