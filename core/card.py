"""The place for scores in a model card, which the stage `train` writes and the stage `eval` fills."""

from __future__ import annotations

import re
from pathlib import Path

from .files import write_text

SCORES_HEADING = "## Scores"

MODEL = "MODEL_FOLDER_OR_HUB_ID"
"""Stands for the model's name in its card until it has one."""


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
