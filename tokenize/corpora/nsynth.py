"""NSynth: single notes of four seconds, with their pitch, velocity and instrument.

<root>/nsynth-train/examples.json   one object a note, under the note's name
<root>/nsynth-train/audio/*.wav     likewise nsynth-valid and nsynth-test
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...core.schema_corpora import NSynthCorpus
from ...core.sections import Split
from ..corpus import Clip, LabelTypes
from .dataset_facts import DATASETS
from .dataset_index import Row, check_root, missing_index, named_file, read_object, refuse_packed

_SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_FIELDS = (
    "pitch",
    "velocity",
    "instrument_str",
    "instrument_family_str",
    "instrument_source_str",
    "qualities_str",
)


def _keep_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Of a note only what becomes a label: the index of `train` holds 289,205 of them."""
    return {name: values[name] for name in _FIELDS if name in values} if "note_str" in values else values


class NSynth:
    """The notes of the splits that are there: `valid` and `test` can be used without the 24 GB of `train`."""

    facts = DATASETS["nsynth"]

    def __init__(self, config: NSynthCorpus):
        self.config = config
        self.label_types: LabelTypes = {
            "pitch": int,
            "velocity": int,
            "instrument": str,
            "instrument_family": str,
            "instrument_source": str,
            "qualities": tuple,
        }

    def clips(self) -> Sequence[Clip]:
        """One clip a note, sorted by id, `<split>/<note_str>`; raises `UserError` if an index is unusable."""
        root = self.config.root
        check_root(root, self.facts)
        present: list[Split] = [split for split in _SPLITS if (root / f"nsynth-{split}").is_dir()]
        for split in _SPLITS:
            if split not in present:
                refuse_packed(root, self.facts, f"nsynth-{split}")
        if not present:
            raise missing_index(root / "nsynth-train" / "examples.json", self.facts)
        return sorted((clip for split in present for clip in self._split(split)), key=lambda clip: clip.id)

    def audio(self, clip: Clip) -> Path:
        """The file of `clip`; raises `AudioError` if it is missing."""
        return named_file(self.config.root, clip.source)

    def _split(self, split: Split) -> Iterator[Clip]:
        index = self.config.root / f"nsynth-{split}" / "examples.json"
        if not index.is_file():
            raise missing_index(index, self.facts)
        for name, values in read_object(index, self.facts, _keep_fields).items():
            row = Row({"note": name, **values} if isinstance(values, dict) else {}, name, index, self.facts)
            yield Clip(
                id=f"{split}/{name}",
                split=split,
                source=f"nsynth-{split}/audio/{row.path('note')}.wav",
                labels={
                    "pitch": row.integer("pitch"),
                    "velocity": row.integer("velocity"),
                    "instrument": row.text("instrument_str"),
                    "instrument_family": row.text("instrument_family_str"),
                    "instrument_source": row.text("instrument_source_str"),
                    "qualities": row.texts("qualities_str"),
                },
            )
