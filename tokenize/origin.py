"""Where the audio of a store comes from, and on what terms: what its card on the Hub has to carry."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core import schema_corpora as schema
from ..core.errors import UserError
from ..core.files import write_json
from .corpora.dataset_facts import DATASETS

ORIGIN = "origin.json"


@dataclass(frozen=True)
class Origin:
    """One source of a store's audio."""

    kind: str
    """Of the corpus, as recipes spell it."""
    name: str
    licence: str | None = None
    """For people; None where the corpus does not tell."""
    licence_id: str | None = None
    """As the Hugging Face Hub spells it."""
    homepage: str | None = None
    citation: str | None = None
    """BibTeX."""


def origins_of(config: schema.Corpus) -> list[Origin]:
    """The sources that a recipe's section `data` names."""
    if isinstance(config, schema.MixedCorpus):
        return list(dict.fromkeys(origin for member in config.corpora for origin in origins_of(member)))
    if facts := DATASETS.get(config.kind):
        return [
            Origin(config.kind, facts.name, facts.licence, facts.licence_id, facts.homepage, facts.citation)
        ]
    if isinstance(config, schema.SynthCorpus):
        return [
            Origin("synth", "Tokkata's synthesiser", "none needed: it was computed from a seed", "cc0-1.0")
        ]
    if isinstance(config, schema.HubDatasetCorpus):
        return [Origin(config.kind, config.id, homepage=f"https://huggingface.co/datasets/{config.id}")]
    return [Origin(config.kind, f"a corpus of kind '{config.kind}'")]


def as_markdown(origin: Origin) -> str:
    """A line of a list in a card."""
    licence = origin.licence or "not told by the corpus"
    where = f" ({origin.homepage})" if origin.homepage else ""
    return f"- {origin.name}, corpus of kind `{origin.kind}`{where}. Licence: {licence}\n"


def write_origins(folder: Path, origins: Sequence[Origin]) -> None:
    """Write `origin.json`."""
    write_json(folder / ORIGIN, [dataclasses.asdict(origin) for origin in origins])


def read_origins(folder: Path) -> list[Origin]:
    """What `write_origins` wrote; raises `UserError` if it is something else."""
    try:
        return [Origin(**row) for row in json.loads((folder / ORIGIN).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / ORIGIN} does not say where the audio comes from: {error}") from error
