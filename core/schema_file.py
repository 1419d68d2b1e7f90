"""The schema of recipes for editors, which complete keys and show what each means.

    python -m tokkata.core.schema_file recipes/schema.json

Recipes name the file in their second line, `# yaml-language-server: $schema=schema.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .files import write_json
from .schema import Recipe


def schema_json() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe."""
    schema = Recipe.model_json_schema()
    schema["title"] = "Tokkata recipe"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tokkata.core.schema_file recipes/schema.json")
    write_json(Path(sys.argv[1]), schema_json())
