"""What is known of a clip in words and numbers."""

from __future__ import annotations

Label = int | float | str | tuple[str, ...]
"""A number, a name, or any number of tags."""
