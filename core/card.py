"""What model cards have in common: the place for scores, which the stage `train` writes and the stage `eval`
fills, and what a model is told."""

from __future__ import annotations

import re
from pathlib import Path

from .conditions import Condition, Conditions
from .files import write_text

SCORES_HEADING = "## Scores"

MODEL = "MODEL_FOLDER_OR_HUB_ID"
"""Stands for the model's name in its card until it has one."""


_NUM_VALUES = 12
"""Of a condition's values, so many are listed."""


def fill_scores(card: Path, table: str) -> None:
    """Put `table`, Markdown, in place of what stands under `SCORES_HEADING` in `card`.

    A card that has lost its heading gets it back at the end.
    """
    text = card.read_text(encoding="utf-8")
    filled = f"{SCORES_HEADING}\n{table.strip()}\n"
    section = re.compile(rf"^{SCORES_HEADING}\n.*?(?=^## |\Z)", flags=re.DOTALL | re.MULTILINE)
    if found := section.search(text):
        after = text[found.end() :]
        text = text[: found.start()] + filled + ("\n" + after if after else "")
    else:
        text = f"{text.rstrip()}\n\n{filled}"
    write_text(card, text)


def condition_line(condition: Condition) -> str:
    """What it is, with its values."""
    name, values = condition.name, condition.values
    if condition.kind == "sequence":
        feature = condition.feature or {}
        by = f" by `{feature['encoder']}`" if feature.get("encoder") else ""
        return f"- `{name}`: {feature.get('kind', 'vectors')}{by}\n"
    if condition.kind == "number":
        return f"- `{name}`: a number from 0 to {condition.maximum:g}\n"
    shown = ", ".join(f"`{value}`" for value in values[:_NUM_VALUES])
    more = f" and {len(values) - _NUM_VALUES} more" if len(values) > _NUM_VALUES else ""
    return f"- `{name}`: {'tags' if condition.kind == 'tags' else 'one'} of {shown}{more}\n"


def example_options(conditions: Conditions) -> list[str]:
    """Options of `tokkata generate` that tell every condition, each its first value."""
    words: list[str] = []
    for condition in conditions:
        kind = (condition.feature or {}).get("kind")
        if condition.kind == "label":
            words += ["--label", f"{condition.name}={condition.values[0]}"]
        elif condition.kind == "tags":
            words += ["--tags", f"{condition.name}={condition.values[0]}"]
        elif kind == "text":
            words += ["--text", "what it should sound like"]
        elif kind in ("melody", "style"):
            words += [f"--{kind}", f"{kind}.wav"]
    return words
