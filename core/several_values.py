"""Options that take several values at once: `--stages a b` as well as `--stages a --stages b`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class SeveralValues(TyperCommand):
    """A command whose list options take all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer has a click of its own
        """As the base class does, of the arguments with every option before each of its values."""
        names = {
            name
            for parameter in self.params
            if getattr(parameter, "multiple", False)
            for name in parameter.opts
        }
        return super().parse_args(ctx, repeat_options(args, names))


def repeat_options(words: list[str], names: set[str]) -> list[str]:
    """`words` with each of the options `names` repeated before each of its values.

    >>> repeat_options(["--a", "x", "y", "--b", "z"], {"--a"})
    ['--a', 'x', '--a', 'y', '--b', 'z']
    """
    repeated: list[str] = []
    current, is_first = None, False
    for word in words:
        if word.startswith("-") and word != "-":
            current, is_first = (word if word in names else None), True
        elif current is not None:
            if not is_first:
                repeated.append(current)
            is_first = False
        repeated.append(word)
    return repeated
