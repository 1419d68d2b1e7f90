"""The words on the page that depend on the test, and which answers each question has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .definition import Attribute, Definition

ATTENTION_ATTRIBUTE = "attention"
"""What answers in attention trials are about."""

_COUNT = Attribute(
    name=ATTENTION_ATTRIBUTE,
    question="A short check: how many tones did you hear?",
    labels=["1 tone", "2 tones", "3 tones", "4 tones", "5 tones"],
)
_MORE = Attribute(name=ATTENTION_ATTRIBUTE, question="A short check: which clip has more tones?")


@dataclass(frozen=True)
class Asked:
    """A question of a trial."""

    attribute: str
    question: str
    labels: list[str]
    values: Collection[float]
    """The answers that there are."""


def questions(definition: Definition, attention: bool) -> list[Asked]:
    """What a trial asks."""
    if definition.method == "mushra":
        attribute = definition.attributes[0]
        values: Collection[float] = frozenset(map(float, range(101)))
        return [Asked(attribute.name, attribute.question, attribute.labels, values)]
    if definition.method == "acr":
        asked = [_COUNT] if attention else definition.attributes
        scale = (1.0, 2.0, 3.0, 4.0, 5.0)
        return [Asked(each.name, each.question, each.labels, scale) for each in asked]
    asked = [_MORE] if attention else definition.attributes
    ties = definition.ties and not attention
    labels = ["A", "No difference", "B"] if ties else ["A", "B"]
    choices = (1.0, 0.5, 0.0) if ties else (1.0, 0.0)
    return [Asked(each.name, each.question, labels, choices) for each in asked]


def shown_questions(definition: Definition, attention: bool) -> list[dict[str, Any]]:
    """The same for the page: choices in the order in which they stand there, or none where a slider is."""
    return [
        {
            "attribute": asked.attribute,
            "question": asked.question,
            "labels": asked.labels,
            "values": [] if definition.method == "mushra" else list(asked.values),
        }
        for asked in questions(definition, attention)
    ]


def storage_notice(definition: Definition) -> list[str]:
    """What is stored about a listener, and what is not, in plain words."""
    ask = f" by writing to {definition.contact}" if definition.contact else ""
    return [
        "We store your answers, when you gave them, how long you played each clip, the result of the check of"
        " your headphones, and a random code that stands for you.",
        "We do not ask for your name, and store neither it nor your network address nor any cookie.",
        "Taking part is voluntary, and you can stop at any time by closing the page. With your code, which"
        f" the page shows, you can see your answers or have them deleted{ask}.",
    ]
