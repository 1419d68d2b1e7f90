"""Stable Audio Open in the hub's layout: found on the Hub, in its cache or in a folder, loaded, and saved.

A pipeline of `diffusers` has a folder for each part: `transformer` and `projection_model` are our network,
`vae` is its codec and `text_encoder` with `tokenizer` what turns prompts into states (`load_codec` and
`load_text` take the pipeline's own name for both), and `scheduler` says how it is sampled.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...core.conditions import Condition, Conditions
from ...core.errors import UserError
from ...core.files import atomic_folder, write_json
from ...core.hub_cache import hub_snapshot
from ...core.released_file import sha256_of
from ...core.saved_model import PIPELINE_INDEX
from ...tokenize.features.feature import FeatureInfo
from .layout import from_diffusers, to_diffusers
from .network import TIMINGS, StableAudio, StableAudioConfig

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_NETWORK_PARTS = ("transformer", "projection_model")
_OTHER_PARTS = ("vae", "text_encoder", "tokenizer")
_TOKENIZER = "tokenizer/tokenizer_config.json"
_SCHEDULER = "scheduler/scheduler_config.json"
_FILES = (
    *(f"{part}/{file}" for part in _NETWORK_PARTS for file in ("config.json", _WEIGHTS)),
    _SCHEDULER,
    _TOKENIZER,
    "text_encoder/config.json",
)
PIPELINE_FILES = (
    *_FILES,
    PIPELINE_INDEX,
    "vae/config.json",
    f"vae/{_WEIGHTS}",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
)
"""Of a pipeline that is complete."""


@dataclass(frozen=True)
class LoadedStableAudio:
    """A network, and what the pipeline that it is of says about sampling."""

    network: StableAudio
    scheduler: dict[str, Any]
    """The content of `scheduler_config.json`; `_class_name` is the scheduler's."""
    version: str
    """Commit on the Hub; for a folder, the start of the network's SHA-256."""


def load_stable_audio(source: str | Path, *, revision: str | None = None) -> LoadedStableAudio:
    """A Stable Audio in float32 and in evaluation mode, from a hub id or a folder in the hub's layout.

    Its conditions are `text` [L, E], the states of its text encoder, cut and filled up to L tokens, and the
    numbers `seconds_start` and `seconds_total`.

    Raises `UserError` if it cannot be had, is no Stable Audio, or its tensors are not exactly those that its
    configuration asks for.
    """
    folder, version = Path(source), None
    if not folder.exists():
        snapshot = hub_snapshot(str(source), revision, [_FILES], "model")
        folder, version = snapshot.folder, snapshot.revision
    transformer, projection, tokenizer, encoder, scheduler = (
        _read_json(folder, file)
        for file in (
            *(f"{part}/config.json" for part in _NETWORK_PARTS),
            _TOKENIZER,
            "text_encoder/config.json",
            _SCHEDULER,
        )
    )
    version = version or sha256_of(folder / "transformer" / _WEIGHTS)[:12]
    weights, projection_weights = (_read_tensors(folder / part / _WEIGHTS) for part in _NETWORK_PARTS)
    try:
        max_tokens = int(tokenizer["model_max_length"])
        text = FeatureInfo(
            name="text",
            kind="text",
            dim=encoder["d_model"],
            frame_rate=None,
            store="float32",
            versions={},
            encoder=str(source),
            column="caption",
            max_tokens=max_tokens,
        )
        config = _config(transformer, projection, projection_weights, text)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source} is no Stable Audio in the hub's layout, or of another kind: {error}"
        ) from error
    network = StableAudio(config)
    try:
        network.load_state_dict(from_diffusers(weights, projection_weights, config))
    except (UserError, RuntimeError) as error:
        told = str(error).splitlines()[-1].strip()
        raise UserError(f"{source}: its weights do not fit its config.json: {told}") from error
    return LoadedStableAudio(network.float().eval(), scheduler, version)


def scheduler_of(folder: Path) -> dict[str, Any]:
    """What the pipeline in `folder` says of sampling; raises `UserError` if it says nothing."""
    return _read_json(folder, _SCHEDULER)


def save_stable_audio(
    network: StableAudio, folder: Path, *, scheduler: dict[str, Any], other_parts: Path
) -> None:
    """Write a pipeline that `diffusers.StableAudioPipeline.from_pretrained` loads.

    Its codec and text encoder are those of the pipeline in the folder `other_parts`, as they are. Raises
    `UserError` if one of them is not there.
    """
    for part in (PIPELINE_INDEX, *_OTHER_PARTS):
        if not (other_parts / part).exists():
            raise UserError(f"{other_parts} is no pipeline of Stable Audio: it lacks {part}")
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    transformer, projection = to_diffusers(state, network.config)
    with atomic_folder(folder) as new:
        for part, tensors in zip(_NETWORK_PARTS, (transformer, projection), strict=True):
            (new / part).mkdir(parents=True)
            save_file(tensors, new / part / _WEIGHTS, metadata={"format": "pt"})
        write_json(new / "transformer" / "config.json", _transformer_config(network.config))
        write_json(new / "projection_model" / "config.json", _projection_config(network.config))
        (new / "scheduler").mkdir()
        write_json(new / _SCHEDULER, scheduler)
        for part in _OTHER_PARTS:
            shutil.copytree(other_parts / part, new / part)
        shutil.copyfile(other_parts / PIPELINE_INDEX, new / PIPELINE_INDEX)


def _config(
    transformer: dict[str, Any], projection: dict[str, Any], tensors: dict[str, Tensor], text: FeatureInfo
) -> StableAudioConfig:
    """From the settings of both parts; raises `KeyError` for one that is missing."""
    if transformer.get("_class_name") != "StableAudioDiTModel":
        raise ValueError(f"the transformer is a {transformer.get('_class_name')}")
    condition_dim = projection["conditioning_dim"]
    if projection["text_encoder_dim"] != text.dim:
        raise ValueError(
            f"text_encoder_dim is {projection['text_encoder_dim']}, its text encoder's width {text.dim}"
        )
    wanted = {"cross_attention_input_dim": condition_dim, "global_states_input_dim": 2 * condition_dim}
    for name, value in wanted.items():
        if transformer[name] != value:
            raise ValueError(f"{name} is {transformer[name]}, not {value}")
    if projection["min_value"] != 0:
        raise ValueError(f"min_value is {projection['min_value']}, not 0")
    width = 2 * len(tensors["start_number_conditioner.time_positional_embedding.0.weights"])
    numbers = (
        Condition(name, "number", "cross", width=width, maximum=float(projection["max_value"]))
        for name in TIMINGS
    )
    prompt = Condition(
        "text",
        "sequence",
        "cross",
        width=text.dim,
        length=text.max_tokens,
        attend_padding=True,
        project=text.dim != condition_dim,
        feature=text.to_json(),
    )
    return StableAudioConfig(
        latent_dim=transformer["out_channels"],
        in_dim=transformer["in_channels"],
        max_frames=transformer["sample_size"],
        conditions=Conditions((prompt, *numbers)),
        num_layers=transformer["num_layers"],
        num_heads=transformer["num_attention_heads"],
        head_dim=transformer["attention_head_dim"],
        num_memory_heads=transformer["num_key_value_attention_heads"],
        memory_dim=transformer["cross_attention_dim"],
        condition_dim=condition_dim,
        num_time_features=transformer["time_proj_dim"],
    )


def _transformer_config(config: StableAudioConfig) -> dict[str, Any]:
    return {
        "_class_name": "StableAudioDiTModel",
        "sample_size": config.max_frames,
        "in_channels": config.in_dim,
        "out_channels": config.latent_dim,
        "num_layers": config.num_layers,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_attention_heads": config.num_memory_heads,
        "cross_attention_dim": config.memory_dim,
        "time_proj_dim": config.num_time_features,
        "global_states_input_dim": len(TIMINGS) * config.condition_dim,
        "cross_attention_input_dim": config.condition_dim,
    }


def _projection_config(config: StableAudioConfig) -> dict[str, Any]:
    texts = [condition for condition in config.conditions if condition.kind == "sequence"]
    if len(texts) != 1:
        raise UserError(
            f"diffusers' Stable Audio is told one text; this one is told {config.conditions.names}"
        )
    return {
        "_class_name": "StableAudioProjectionModel",
        "text_encoder_dim": texts[0].width,
        "conditioning_dim": config.condition_dim,
        "min_value": 0,
        "max_value": config.conditions[TIMINGS[0]].maximum,
    }


def _read_json(folder: Path, file: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is no Stable Audio in the hub's layout: {file} is missing or no JSON"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{folder / file} holds no settings: download it again")
    return found


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is missing or damaged: download it again") from error
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
