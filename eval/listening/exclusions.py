"""Whose answers do not count, by rules that were written down before the first listener came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .agreement import ALIKE, repeat_differences
from .definition import Definition
from .grid import COUNTED
from .ratings import Rating

MUSHRA_REFERENCE = 90.0
MUSHRA_SHARE = 0.15
"""ITU-R BS.1534-3, post-screening: listeners who rate the hidden reference below 90 in more than 15 % of the
trials are left out."""


@dataclass(frozen=True)
class Excluded:
    """A listener whose answers do not count."""

    listener: str
    reasons: Sequence[str]


@dataclass(frozen=True)
class Screened:
    """Ratings that count, and what does not."""

    kept: Sequence[Rating]
    excluded: Sequence[Excluded]
    unheard: Sequence[Rating]
    """Ratings given after hearing too little of the clip, of listeners who are not excluded."""


def rules(definition: Definition) -> list[str]:
    """The exclusion rules of a test in words."""
    exclusions = definition.exclusions
    alike = {
        "acr": f"within {ALIKE['acr']:g} point",
        "mushra": f"within {ALIKE['mushra']:g} points",
        "ab": "with the same choice",
    }[definition.method]
    found = []
    if definition.attention_items:
        allowed = exclusions.max_attention_failures
        many = f"more than {allowed} wrong answers" if allowed else "a wrong answer"
        found.append(f"Listeners with {many} in attention trials.")
    if definition.repeated_items:
        found.append(
            f"Listeners who answered fewer than {100 * exclusions.min_repeat_agreement:g} % of the repeated"
            f" items alike, that is {alike}."
        )
    if definition.method == "mushra":
        found.append(
            f"Listeners who rated the hidden reference below {MUSHRA_REFERENCE:g} in more than"
            f" {100 * MUSHRA_SHARE:g} % of the trials (ITU-R BS.1534-3)."
        )
    found.append(
        f"Ratings given after hearing less than {100 * exclusions.min_listened_fraction:g} % of the clip."
    )
    return found


def screen(ratings: Sequence[Rating], definition: Definition) -> Screened:
    """Apply the definition's exclusion rules to all ratings of a test."""
    excluded = [
        Excluded(listener, reasons)
        for listener, own in _by_listener(ratings).items()
        if (reasons := _reasons(own, definition))
    ]
    gone = {one.listener for one in excluded}
    stayed = [rating for rating in ratings if rating.listener not in gone]
    unheard = [rating for rating in stayed if rating.role in COUNTED and _unheard(rating, definition)]
    kept = [rating for rating in stayed if not _unheard(rating, definition)]
    return Screened(kept, excluded, unheard)


def _by_listener(ratings: Iterable[Rating]) -> dict[str, list[Rating]]:
    found: dict[str, list[Rating]] = {}
    for rating in ratings:
        found.setdefault(rating.listener, []).append(rating)
    return found


def _unheard(rating: Rating, definition: Definition) -> bool:
    return rating.listened_s < definition.exclusions.min_listened_fraction * rating.duration_s


def _reasons(own: Sequence[Rating], definition: Definition) -> list[str]:
    """Why the listener who gave these ratings is excluded."""
    found = []
    exclusions = definition.exclusions
    asked = [rating for rating in own if rating.role == "attention"]
    failures = sum(rating.value != rating.expected for rating in asked)
    if failures > exclusions.max_attention_failures:
        found.append(f"{failures} of {len(asked)} attention trials wrong")
    differences = [one for many in repeat_differences(own).values() for one in many]
    alike = sum(difference <= ALIKE[definition.method] for difference in differences)
    if differences and alike < exclusions.min_repeat_agreement * len(differences):
        found.append(f"{alike} of {len(differences)} repeated items answered alike")
    if definition.method == "mushra":
        references = [
            rating.value
            for rating in own
            if rating.role == "reference" and rating.system == "reference" and rating.repeat == 0
        ]
        low = sum(value < MUSHRA_REFERENCE for value in references)
        if low > MUSHRA_SHARE * len(references):
            found.append(
                f"hidden reference rated below {MUSHRA_REFERENCE:g} in {low} of {len(references)} trials"
            )
    return found
