"""What a listening test is: TEST.yaml, checked.

`tokkata listen new` writes it, with every setting filled in. Beside it lie the folder of its stimuli and,
once listeners have come, the database of their answers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ...core.recipe import check_section, dump_yaml, read_yaml
from ...core.sections import NOT_BOOL, Fraction, Integer, PositiveFloat, PositiveInt, Section

Method = Literal["acr", "ab", "mushra"]
Count = Annotated[int, Field(ge=0), NOT_BOOL]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]

P800_LABELS = ("Bad", "Poor", "Fair", "Good", "Excellent")
"""The five-point scale of absolute category rating, worst first (ITU-T P.800, annex B); MUSHRA has the same
five words beside its continuous scale (ITU-R BS.1534-3)."""

QUESTIONS: dict[str, dict[str, str]] = {
    "acr": {
        "quality": "How good is the overall quality of this clip?",
        "musicality": "How musical is this clip: would it pass as music that somebody has played?",
        "coherence": "How coherent is this clip: does each part follow from what came before?",
        "adherence": "How well does this clip fit its description?",
    },
    "ab": {
        "quality": "Which clip has the better overall quality?",
        "musicality": "Which clip is more musical: would sooner pass as music that somebody has played?",
        "coherence": "Which clip is more coherent: each part follows from what came before?",
        "adherence": "Which clip fits its description better?",
    },
    "mushra": {
        "quality": "How good is the overall quality of each clip, compared with the reference?",
        "musicality": "How musical is each clip, compared with the reference?",
        "coherence": "How coherent is each clip, compared with the reference?",
        "adherence": "How well does each clip fit its description, compared with the reference?",
    },
}
"""Attributes that need no question of their own, by method."""

RESERVED = ("reference", "reconstructed", "attention", "volume", "headphones")
"""Names in the manifest and in ratings that no system can have; nor can any that starts with `anchor_`."""


class Attribute(Section):
    """Something that listeners are asked about every clip."""

    name: Name
    """What the report calls it."""
    question: Annotated[str, Field(min_length=1, max_length=300)]
    """The words on the page."""
    labels: list[str] = Field(default=list(P800_LABELS), min_length=5, max_length=5)
    """Words for the five points, or for the five fifths of the MUSHRA scale, worst first; unused in A/B."""


class System(Section):
    """A system under test."""

    name: Name
    """What the report calls it; listeners never see it."""
    path: Path
    """The folder that its clips came from."""


class Exclusions(Section):
    """Whose answers do not count: decided before the first listener, reported with and without."""

    max_attention_failures: Count = 0
    """Listeners with more wrong answers in attention trials are excluded."""
    min_repeat_agreement: Fraction = 0.5
    """Listeners who rate fewer than this share of the repeated items alike are excluded."""
    min_listened_fraction: Fraction = 0.95
    """Ratings after hearing less than this share of the clip are excluded."""


class Definition(Section):
    """A listening test."""

    name: Annotated[str, Field(min_length=1, max_length=100)] = "Listening test"
    """The heading that listeners see."""
    method: Method
    """`acr`: clips alone, five points; `ab`: which of two; `mushra`: versions of an item together, 0…100."""
    attributes: list[Attribute] = Field(min_length=1, max_length=6)
    """What is asked of each clip."""
    systems: list[System] = Field(min_length=1, max_length=20)
    """The systems under test."""
    reference: Path | None = None
    """The folder of real recordings; hidden among the clips."""
    codec: str | None = None
    """The codec through which the recordings also went: what a model of its tokens can reach at best."""
    anchors_hz: list[PositiveInt] = Field(default=[])
    """Cut-off frequencies of the low anchors: recordings without what lies above."""
    paired: bool = True
    """Whether clips of different systems belong together by their file names; else they only do by number."""
    prompts: Path | None = None
    """A folder with a text file for each item; its words were shown beside the item's clips."""
    ties: bool = True
    """A/B: whether 'no difference' is an answer."""
    items_per_listener: PositiveInt
    """Items that a listener rates, each in the versions of all systems."""
    practice_items: Count = 2
    """Trials at the beginning that do not count."""
    repeated_items: Count = 2
    """Trials at the end that ask again about clips that the listener has rated."""
    attention_items: Count = 2
    """Trials in between that ask how many tones the listener hears."""
    loudness_lufs: Annotated[float, Field(ge=-50.0, le=-10.0), NOT_BOOL]
    """Integrated loudness of all clips (ITU-R BS.1770-4)."""
    sample_rate_hz: PositiveInt = 48000
    """Sample rate of all clips."""
    max_duration_s: PositiveFloat = 20.0
    """Longer clips were cut to this."""
    introduction: Annotated[str, Field(max_length=2000)] = (
        "You will hear short pieces of music and say how you like them. There are no right answers."
    )
    """The first words on the page."""
    contact: Annotated[str, Field(max_length=200)] = ""
    """Whom listeners can ask, and tell that their answers be deleted; shown on the page."""
    exclusions: Exclusions = Exclusions()
    """Whose answers do not count."""
    max_listeners: PositiveInt = 1000
    """After this many, nobody can enrol any more."""
    min_listeners: PositiveInt = 8
    """Below this many listeners the report gives no intervals."""
    seed: Integer = 0
    """Seed of all orders."""

    @property
    def scale(self) -> tuple[float, float]:
        """The lowest and the highest value of a rating."""
        return {"acr": (1.0, 5.0), "mushra": (0.0, 100.0), "ab": (0.0, 1.0)}[self.method]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [system.name for system in self.systems]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"there are two systems '{name}': give each a name of its own")
            if name in RESERVED or name.startswith("anchor_"):
                raise ValueError(f"no system can be named '{name}': the report uses that name itself")
            for shown in self._shown_texts():
                if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", shown, re.IGNORECASE):
                    raise ValueError(
                        f"listeners would read the system's name '{name}' in '{shown}': change one of the two"
                    )
        attributes = [attribute.name for attribute in self.attributes]
        if len(set(attributes)) < len(attributes) or "attention" in attributes:
            raise ValueError("each attribute needs a name of its own, other than 'attention'")
        return self

    def _shown_texts(self) -> list[str]:
        asked = [text for attribute in self.attributes for text in (attribute.question, *attribute.labels)]
        return [self.name, self.introduction, self.contact, *asked]

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.reference is None and (self.codec or self.anchors_hz):
            raise ValueError("reconstructions and low anchors are made of real recordings: give a reference")
        if self.method == "ab" and len(self.systems) + (self.reference is not None) < 2:
            raise ValueError("A/B compares: give a second system, or a reference")
        if self.method == "ab" and (self.codec or self.anchors_hz):
            raise ValueError(
                "A/B compares systems and the reference only: leave out the codec and the anchors"
            )
        if any(2 * cutoff >= self.sample_rate_hz for cutoff in self.anchors_hz):
            raise ValueError("anchors_hz must lie below half the sample rate")
        if max(self.repeated_items, self.attention_items) > self.items_per_listener:
            raise ValueError("there cannot be more repeated or attention items than items_per_listener")
        if self.prompts is not None and not self.paired:
            raise ValueError("prompts belong to items: the folders must share file names")
        if self.method == "mushra":
            self._check_mushra()
        return self

    def _check_mushra(self) -> None:
        if self.reference is None:
            raise ValueError("MUSHRA compares with a reference: give one")
        if not self.paired:
            raise ValueError("MUSHRA compares versions of one item: the folders must share file names")
        if len(self.attributes) > 1:
            raise ValueError("MUSHRA asks one question: make a second test for a second attribute")
        if self.attention_items:
            raise ValueError("MUSHRA has no attention items: its hidden reference shows who is listening")


def load_definition(path: Path) -> Definition:
    """Read and check the definition at `path`; raises `UserError` with one sentence for each fault."""
    return check_section(Definition, read_yaml(path, "listening test", "'systems:'"))


def dump_definition(definition: Definition) -> str:
    """The definition with every default filled in, as YAML that `load_definition` reads back."""
    return dump_yaml(definition.model_dump(mode="json"))


def stimuli_folder(test: Path) -> Path:
    """Where the clips of the test defined in `test` lie, and `manifest.json`."""
    return test.with_name(f"{test.stem}-stimuli")


def database_path(test: Path) -> Path:
    """Where the answers to the test defined in `test` lie."""
    return test.with_name(f"{test.stem}.sqlite")
