"""The one form in which every score is handed on, written to JSON and put into tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .bootstrap import Interval

Better = Literal["lower", "higher"]
BETTER: dict[str, Better] = {
    "fad": "lower",
    "fad-inf": "lower",
    "per-song": "lower",
    "kad": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
    "clap-score": "higher",
    "kl-generated-reference": "lower",
    "kl-reference-generated": "lower",
    "kl-unpaired-generated-reference": "lower",
    "kl-unpaired-reference-generated": "lower",
    "inception-score": "higher",
    "label-accuracy": "higher",
    "token-entropy-gap": "lower",
    "unigram-distance": "lower",
    "bigram-distance": "lower",
    "pitch-accuracy": "higher",
    "chroma-accuracy": "higher",
    "memorised-exact": "lower",
    "memorised-partial": "lower",
}
"""Every score of a set of clips, and which way it is better."""

SHOWN = {
    "fad": "FAD",
    "fad-inf": "FAD∞",
    "per-song": "Per clip",
    "kad": "KAD",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "clap-score": "CLAP score",
    "kl-generated-reference": "KL(generated‖reference)",
    "kl-reference-generated": "KL(reference‖generated)",
    "kl-unpaired-generated-reference": "KL of sets, generated‖reference",
    "kl-unpaired-reference-generated": "KL of sets, reference‖generated",
    "inception-score": "Inception score",
    "label-accuracy": "Right label",
    "token-entropy-gap": "Token entropy gap (bits)",
    "unigram-distance": "Token distance",
    "bigram-distance": "Token pair distance",
    "pitch-accuracy": "Right pitch",
    "chroma-accuracy": "In any octave",
    "memorised-exact": "Continued exactly",
    "memorised-partial": "Continued to 80 %",
}
"""What pages call them."""

GROUPS: dict[str, tuple[str, ...]] = {
    "prdc": ("precision", "recall", "density", "coverage"),
    "kl": tuple(name for name in BETTER if name.startswith("kl-")),
    "tokens": ("token-entropy-gap", "unigram-distance", "bigram-distance"),
}
"""Names that stand for several scores."""


def single(names: Iterable[str]) -> list[str]:
    """`names` with each group in full."""
    return [one for name in names for one in GROUPS.get(name, (name,))]


Detail = float | str | Sequence[float | str | None]


@dataclass(frozen=True)
class Score:
    """A number that says how a set of generated clips compares, and how much it can be trusted."""

    name: str
    value: float | None
    """None where it cannot be measured; `note` says why."""
    interval: Interval | None
    """How far the value may be off because there are only so many generated clips."""
    better: Better
    detail: Mapping[str, Detail] = field(default_factory=dict)
    """What the value was read from, such as the points of a fit."""
    note: str = ""
    """Why there is no value, or what to know of it."""


def no_score(name: str, note: str) -> Score:
    """The score `name` without a value, for the reason `note`."""
    return Score(name, None, None, BETTER[name], note=note)
