"""A token store as a dataset on the Hugging Face Hub, with a card that carries the source's licence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..core.errors import UserError
from ..core.files import write_text
from ..core.hub_upload import upload_folder
from .token_summary import TokenSummary, as_text, summarise

CARD_NAME = "README.md"


def dataset_card(summary: TokenSummary, name: str) -> str:
    """The text of the card, with the front matter that the Hub reads."""
    info = summary.info
    stored = "latents" if info.latents else "tokens"
    sources = "".join(
        f"- {origin.name}: {origin.licence}" + (f" ({origin.homepage})\n" if origin.homepage else "\n")
        for origin in summary.origins
    )
    citations = "\n\n".join(origin.citation for origin in summary.origins if origin.citation)
    cited = f"\n## Citation of the source\n```bibtex\n{citations}\n```\n" if citations else ""
    identifiers = sorted({str(origin.licence_id) for origin in summary.origins})
    licence = identifiers[0] if len(identifiers) == 1 else "other"
    return f"""---
license: {licence}
pretty_name: {name}
task_categories: [text-to-audio]
tags: [tokkata, audio-tokens, music]
configs:
- config_name: default
  data_files: "data-*.arrow"
---
# {name}

Audio {stored} of the codec `{info.id}`, made with Tokkata.

## Source and licence
{sources}
What is derived from the source, these {stored} included, is bound by its licence.

## Content
```
{as_text(summary)}
```

## Use
```python
from huggingface_hub import snapshot_download
from tokkata.tokenize.store import TokenStore

store = TokenStore(snapshot_download("{name}", repo_type="dataset"))
```
`codec.json` says which codec, revision, rate and settings made them. A row is flat and frame-major, so that
a crop in time is one slice.
{cited}"""


def push_to_hub(folder: Path, repository: str, *, private: bool, licence: str | None) -> str:
    """Upload the store in `folder` as the dataset `repository`; returns its address.

    `licence` (an identifier of the Hub, such as `cc-by-4.0`) is needed where the corpus does not tell one.
    Raises `UserError` where it is not told, where nobody is logged in, and for faults of the network.
    """
    summary = summarise(folder)
    if any(origin.licence is None for origin in summary.origins):
        if licence is None:
            untold = ", ".join(origin.name for origin in summary.origins if origin.licence is None)
            raise UserError(
                f"the licence of the audio is not told ({untold}): give --licence, such as cc-by-4.0"
            )
        told = [
            dataclasses.replace(origin, licence=licence, licence_id=licence)
            if origin.licence is None
            else origin
            for origin in summary.origins
        ]
        summary = dataclasses.replace(summary, origins=told)
    write_text(folder / CARD_NAME, dataset_card(summary, repository))
    return upload_folder(
        folder, repository, "dataset", private=private, message="Token store made with Tokkata"
    )
