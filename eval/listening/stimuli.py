"""The clips of a listening test: what lies in their folder, and which of them is whose.

Files have opaque names. Only the manifest, which the server reads and never serves, says what they are.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.errors import UserError
from ...core.files import write_json
from .definition import stimuli_folder

StimulusRole = Literal["scored", "reference", "anchor", "attention", "check"]

REFERENCE = "reference"
RECONSTRUCTED = "reconstructed"
ATTENTION = "attention"
VOLUME = "volume"
HEADPHONES = "headphones"


def anchor_name(cutoff_hz: int) -> str:
    """The name of a low anchor among the systems."""
    return f"anchor_{cutoff_hz}"


@dataclass(frozen=True)
class Stimulus:
    """A clip of the test."""

    id: str
    """Opaque; the file is `<id>.wav`."""
    item: str
    """Shared by the versions of one item; of attention and check clips, the right answer."""
    system: str
    """A system's name, or `reference`, `reconstructed`, `anchor_…`, `attention`, `volume`, `headphones`."""
    role: StimulusRole
    duration_s: float
    gain_db: float
    """What it took to reach the loudness of the test."""
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All clips of a test."""

    stimuli: dict[str, Stimulus]
    """By id."""
    prompts: dict[str, str]
    """By item: the words shown beside its clips."""

    def of_system(self, system: str) -> dict[str, str]:
        """The ids of a system's clips by item, in the order of the items."""
        found = {clip.item: clip.id for clip in self.stimuli.values() if clip.system == system}
        return dict(sorted(found.items()))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into the folder of the clips."""
    rows = [dataclasses.asdict(clip) for clip in manifest.stimuli.values()]
    write_json(folder / "manifest.json", {"stimuli": rows, "prompts": manifest.prompts})


def load_manifest(test: Path) -> Manifest:
    """The clips of the test defined in `test`; raises `UserError` if one is missing."""
    path = stimuli_folder(test) / "manifest.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        clips = [Stimulus(**row) for row in values["stimuli"]]
        prompts = dict(values["prompts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as the list of the test's clips: make the test with 'tokkata listen new'"
        ) from error
    for clip in clips:
        file = path.parent / f"{clip.id}.wav"
        if not clip.id.isalnum() or not file.is_file():
            raise UserError(f"{file}, listed in {path}, is missing: make the test again")
    return Manifest({clip.id: clip for clip in clips}, prompts)
