"""Codecs in the hub's layout: from the Hugging Face Hub, its cache, or a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.hub_cache import hub_snapshot, not_found
from .codec import Codec

SHIPPED = {name: Path(__file__).parent / name for name in ("pocket", "pocket_vae")}
"""The codecs that ship with Tokkata: name → folder in the hub's layout."""

_TRANSFORMERS = "model.safetensors"
_DIFFUSERS = "diffusion_pytorch_model.safetensors"

_CHOICES = {
    "dac": "num_codebooks",
    "encodec": "bandwidth_kbps",
    "mimi": "num_codebooks",
    "xcodec": "bandwidth_kbps",
    "oobleck": None,
    "waveform": None,
}
"""Families, and the setting that decides how many codebooks are used."""

_FAMILY_NAMES = {
    "dac": "a DAC",
    "encodec": "an EnCodec",
    "mimi": "a Mimi",
    "xcodec": "an X-Codec",
    "oobleck": "an Oobleck autoencoder",
    "waveform": "a codec of single samples",
}


def check_settings(id: str, family: str, **told: float | str | None) -> None:
    """Refuse settings that the family does not have, rather than ignore them."""
    wanted = _CHOICES[family]
    for name, value in told.items():
        if value is not None and name != wanted:
            is_choice = wanted is not None and name in _CHOICES.values()
            advice = f"choose {wanted}, not {name}" if is_choice else f"remove {name}"
            raise UserError(f"codec {id} is {_FAMILY_NAMES[family]}: {advice}")


def load_from_hub(
    id: str,
    revision: str | None,
    num_codebooks: int | None,
    bandwidth_kbps: float | None,
    subfolder: str | None,
    wanted: str | None,
) -> Codec:
    """A codec in the hub's layout, from the Hub, its cache, or a folder."""
    folder, revision = find_folder(id, revision, subfolder)
    try:
        config, subfolder = _find_config(folder, subfolder)
    except (OSError, ValueError) as error:
        raise UserError(not_found(id, revision, "codec")) from error
    family = _family_of(config)
    if family is None:
        raise UserError(not_found(id, revision, "codec"))
    if family not in _CHOICES:
        known = "'dac', 'encodec', 'mimi', 'xcodec' and 'oobleck'"
        raise UserError(f"codec {id} is of family '{family}'; known are {known}")
    if wanted is not None and family != wanted:
        raise UserError(f"codec {id} is {_FAMILY_NAMES[family]}: its kind is '{family}', not '{wanted}'")
    if subfolder is not None and family != "oobleck":
        raise UserError(
            f"codec {id} is {_FAMILY_NAMES[family]}, which must lie at the root, not in {subfolder}"
        )
    check_settings(id, family, num_codebooks=num_codebooks, bandwidth_kbps=bandwidth_kbps)
    revision = revision or _hash_of_weights(folder / (subfolder or ""))
    source = str(folder)
    match family:
        case "dac":
            from .families.codec_dac import HubDac

            return HubDac.load(id, source, revision, num_codebooks)
        case "encodec":
            from .families.codec_encodec import HubEncodec

            return HubEncodec.load(id, source, revision, bandwidth_kbps)
        case "mimi":
            from .families.codec_mimi import HubMimi

            return HubMimi.load(id, source, revision, num_codebooks)
        case "xcodec":
            from .families.codec_xcodec import HubXcodec

            return HubXcodec.load(id, source, revision, bandwidth_kbps)
        case _:
            from .families.codec_oobleck import HubOobleck

            return HubOobleck.load(id, source, revision, subfolder)


def find_folder(id: str, revision: str | None, subfolder: str | None = None) -> tuple[Path, str | None]:
    """The folder that holds the codec's files, and their commit if they are from the Hub.

    Raises `UserError` if there is none.
    """
    if id in SHIPPED:
        return SHIPPED[id], None
    if Path(id).exists():
        return Path(id), None
    snapshot = hub_snapshot(id, revision, _layouts(subfolder), "codec")
    return snapshot.folder, snapshot.revision


def _layouts(subfolder: str | None) -> list[tuple[str, ...]]:
    """Sets of files that make a codec: transformers', diffusers', and a diffusion pipeline's autoencoder."""
    layouts: list[tuple[str, ...]] = [("config.json", _TRANSFORMERS), ("config.json", _DIFFUSERS)]
    if subfolder is not None:
        return [tuple(f"{subfolder}/{file}" for file in files) for files in layouts]
    return [*layouts, ("vae/config.json", f"vae/{_DIFFUSERS}")]


def _find_config(folder: Path, subfolder: str | None) -> tuple[dict[str, Any], str | None]:
    """What `config.json` says, and the folder in `folder` where it lies.

    Raises `OSError` if there is none, `ValueError` if it is no JSON object.
    """
    # A diffusion pipeline has no config.json at its root, and its autoencoder in `vae`.
    if subfolder is None and not (folder / "config.json").exists():
        subfolder = "vae"
    path = folder / (subfolder or "") / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object")
    return config, subfolder


def _family_of(config: dict[str, Any]) -> str | None:
    if config.get("_class_name") == "AutoencoderOobleck":  # diffusers has no `model_type`
        return "oobleck"
    return config.get("model_type")


def _hash_of_weights(folder: Path) -> str | None:
    """The start of the SHA-256 of the weights in a local folder; None where there are none."""
    for name in (_TRANSFORMERS, _DIFFUSERS):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return None
