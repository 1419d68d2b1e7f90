"""A model on the Hugging Face Hub: weights, configuration, card, and a few clips to listen to."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..core.card import MODEL
from ..core.errors import UserError
from ..core.files import read_jsonl, write_text
from ..core.hub_upload import upload_folder
from ..core.recipe import load_recipe
from ..core.run import stage_states
from ..core.saved_model import CONFIG_NAME, WEIGHTS_NAME, model_folder, read_config
from .load import FAMILIES

CARD_NAME = "README.md"
NUM_CLIPS = 4
"""Clips of a run that go with its model."""

_HEADING = "## Listen"


def push_to_hub(source: Path, repository: str, *, private: bool) -> str:
    """Upload the model of a run, or in a folder, as `repository`; returns its address.

    Uploaded are the weights, the configuration (with the codec's description) and the card, in which the
    model is called by its new name; of a run whose stage `generate` is done also its first clips. Nothing
    else of the run is. Raises `UserError` for a folder without a model, where nobody is logged in, and for
    faults of the network.
    """
    if not source.is_dir():
        raise UserError(f"there is no folder {source}")
    folder = model_folder(source)
    config = read_config(folder / CONFIG_NAME)
    if config.get("kind") not in (*FAMILIES, "diffusion", "gan"):
        raise UserError(f"{folder} holds no model of Tokkata that generates, nothing is uploaded")
    for name in (WEIGHTS_NAME, CARD_NAME):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no finished model: {name} is missing")
    for what, name in _local_parts(config):
        print(
            f"{repository}: its {what} is the folder {name}, which is not uploaded:"
            " who has no such folder cannot use the model",
            file=sys.stderr,
        )
    clips = _clips_of(folder.parent) if folder.name == "model" else []
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        for file in (CONFIG_NAME, WEIGHTS_NAME):
            shutil.copyfile(folder / file, staged / file)
        card = (folder / CARD_NAME).read_text(encoding="utf-8").replace(MODEL, repository)
        write_text(staged / CARD_NAME, _with_players(card, repository, clips))
        for clip in clips:
            target = staged / "samples" / clip["file"]
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(folder.parent / "samples" / clip["file"], target)
        return upload_folder(staged, repository, "model", private=private, message="Made with Tokkata")


def _local_parts(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Codec and encoders that are folders of this machine: what they are, and where."""
    conditions = config.get("network", config).get("conditions", [])  # which a diffusion model has one deeper
    features = [condition["feature"] for condition in conditions if condition.get("feature")]
    named = [("codec", config.get("codec", {}).get("id"))]
    named += [(f"{feature['kind']} encoder", feature.get("encoder")) for feature in features]
    return [(what, name) for what, name in named if name and Path(name).exists()]


def _clips_of(run: Path) -> list[dict[str, Any]]:
    """What `samples.jsonl` of a run says of its first clips; none where they are not of this model."""
    samples = run / "samples" / "samples.jsonl"
    if not samples.is_file() or not (run / "recipe.yaml").is_file():
        return []
    # Where the run lies now may not be where its recipe says.
    here = {"runs_dir": run.resolve().parent, "name": run.resolve().name}
    recipe = load_recipe(run / "recipe.yaml").model_copy(update=here)
    if not any(state.stage.name == "generate" and state.state == "done" for state in stage_states(recipe)):
        print(f"{run / 'samples'} may not be of this model (run generate again): left out", file=sys.stderr)
        return []
    return read_jsonl(samples)[:NUM_CLIPS]


def _with_players(card: str, repository: str, clips: list[dict[str, Any]]) -> str:
    """The card with a player for each clip before its first section."""
    if not clips:
        return card
    lines = [_HEADING]
    for clip in clips:
        told = ", ".join(f"{name} {value}" for name, value in clip.get("labels", {}).items())
        address = f"https://huggingface.co/{repository}/resolve/main/samples/{clip['file']}"
        lines += ([told] if told else []) + [f'<audio controls src="{address}"></audio>', ""]
    section = "\n".join(lines)
    found = re.search(r"^## ", card, flags=re.MULTILINE)
    at = found.start() if found else len(card)
    return f"{card[:at]}{section}\n{card[at:]}"
