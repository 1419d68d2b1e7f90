"""A trained codec on the Hugging Face Hub: its weights, its JSON files, and its card."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ...core.card import MODEL
from ...core.errors import UserError
from ...core.files import write_text
from ...core.hub_upload import upload_folder
from ...core.saved_model import CONFIG_NAME, read_config
from .card import CARD_NAME, class_name

WEIGHTS = {
    "DacModel": "model.safetensors",
    "EncodecModel": "model.safetensors",
    "AutoencoderOobleck": "diffusion_pytorch_model.safetensors",
    "MelVae": "model.safetensors",
}
"""Classes that a codec is saved by, and what each calls its weights."""


def is_codec(folder: Path) -> bool:
    """Whether `folder` holds a codec in the hub's layout, rather than another model.

    Raises `UserError` if it has no readable `config.json`.
    """
    return class_name(read_config(folder / CONFIG_NAME)) in WEIGHTS


def push_codec(folder: Path, repository: str, *, private: bool) -> str:
    """Upload the codec in `folder` as `repository`; returns its address.

    Its card calls it by its new name. Raises `UserError` where a file is missing, where nobody is logged in,
    and for faults of the network.
    """
    weights = WEIGHTS[class_name(read_config(folder / CONFIG_NAME)) or ""]
    for name in (weights, CARD_NAME):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no finished codec: {name} is missing")
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        for file in [*folder.glob("*.json"), folder / weights]:
            shutil.copyfile(file, staged / file.name)
        card = (folder / CARD_NAME).read_text(encoding="utf-8")
        write_text(staged / CARD_NAME, card.replace(MODEL, repository))
        return upload_folder(staged, repository, "model", private=private, message="Codec made with Tokkata")
