"""Options that take several values."""

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from tokkata.core.several_values import SeveralValues, repeat_options


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("r --a x y --b z", "r --a x --a y --b z"),
        ("--a x --a y", "--a x --a y"),
        ("--a x y --c --a z", "--a x --a y --c --a z"),
        ("--a=x --b z", "--a=x --b z"),
        ("", ""),
    ],
)
def test_each_value_gets_its_option(words: str, expected: str):
    assert repeat_options(words.split(), {"--a"}) == expected.split()


def test_a_command_takes_several_values():
    app = typer.Typer()

    @app.command(cls=SeveralValues)
    def command(
        first: Annotated[str, typer.Argument()] = "",
        many: Annotated[list[str] | None, typer.Option()] = None,
        one: str = "",
    ) -> None:
        print(first, many, one)

    result = CliRunner().invoke(app, ["f", "--many", "a", "b", "--one", "c", "--many", "d"])
    assert result.output == "f ['a', 'b', 'd'] c\n"
