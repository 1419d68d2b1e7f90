"""The place for scores in a model card, which the stage `train` writes and the stage `eval` fills."""

from __future__ import annotations

import re
from pathlib import Path

from .files import write_text

SCORES_HEADING = "## Scores"


def fill_scores(card: Path, table: str) -> None:
    """Replace what stands under `SCORES_HEADING` in `card` with `table`, Markdown."""
    text = card.read_text(encoding="utf-8")
    section = re.compile(rf"^{SCORES_HEADING}\n.*?(?=^## )", flags=re.DOTALL | re.MULTILINE)
    write_text(card, section.sub(lambda _: f"{SCORES_HEADING}\n{table.strip()}\n\n", text, count=1))
