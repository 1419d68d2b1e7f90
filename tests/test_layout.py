"""The repository is the package: the rules that keep it so, and that keep its rooms apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "tokenize", "lm", "diffusion", "gan", "eval")

# Which rooms each may import from, besides itself.
MAY_IMPORT = {
    "core": set(),
    "tokenize": {"core"},
    "lm": {"core", "tokenize"},
    "diffusion": {"core", "tokenize"},
    "gan": {"core", "tokenize"},
    "eval": {"core", "tokenize"},
    "cli": set(ROOMS),
}

PACKAGE_FILES = [*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))]
TEST_FILES = list((ROOT / "tests").rglob("*.py"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path):
    """The rooms of this package that a file imports from, at any depth of its code."""
    package = ["tokkata", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = start + (node.module.split(".") if node.module else [])
            modules = [[*module, alias.name] for alias in node.names]
        yield from (module[1] for module in modules if module[0] == "tokkata" and len(module) > 1)


@pytest.mark.parametrize(
    "code",
    [
        "import tokenize",
        "import linecache, inspect, tokenize",
        # What `python -m tokkata…` does: the current folder comes first on the path.
        "import os, sys; sys.path.insert(0, os.getcwd()); import tokenize",
    ],
)
def test_tokenize_is_the_standard_librarys_at_the_root(code):
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; print(tokenize.__file__); tokenize.generate_tokens"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert Path(told.stdout.strip()) == Path(ast.__file__).with_name("tokenize.py")


def test_a_stage_starts_with_dash_m_at_the_root():
    told = subprocess.run(
        [sys.executable, "-m", "tokkata.core.schema_file"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (
        1,
        "usage: python -m tokkata.core.schema_file recipes/schema.json\n",
    )


def test_rooms_have_no_init_file():
    found = {name_of(path) for path in PACKAGE_FILES + TEST_FILES if path.name == "__init__.py"}
    assert found == {"__init__.py"}


def test_modules_are_not_named_like_the_standard_librarys():
    names = {path.stem for path in PACKAGE_FILES} | {room for room in ROOMS if (ROOT / room).is_dir()}
    assert names & sys.stdlib_module_names == {"tokenize"}


def test_modules_say_what_they_are():
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [name_of(path) for path in PACKAGE_FILES + TEST_FILES if path.stem in vague] == []


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_imports_point_one_way(path):
    imported = set(imported_rooms(path)) - {room_of(path)}
    if path.name == "__init__.py":
        assert imported == set()
    else:
        assert imported <= MAY_IMPORT[room_of(path)]


def test_imports_are_seen_at_all():
    """The walk above finds relative and absolute imports, in functions too."""
    assert set(imported_rooms(ROOT / "tokenize" / "encode.py")) == {"core", "tokenize"}
    assert "lm" in set(imported_rooms(ROOT / "lm" / "train.py"))
    assert "core" in set(imported_rooms(Path(__file__))), (
        "test_imports_are_seen_at_all imports from core below"
    )
    from tokkata.core import errors

    assert errors.UserError


def test_imports_inside_the_package_are_relative():
    absolute = [
        f"{name_of(path)}:{node.lineno}"
        for path in PACKAGE_FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and str(node.module).startswith("tokkata"))
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "tokkata" for a in node.names))
    ]
    assert absolute == []


def test_no_file_is_long():
    long = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE_FILES + TEST_FILES
    }
    assert {name: lines for name, lines in long.items() if lines > 500} == {}


def test_every_room_is_packaged():
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in PACKAGE_FILES}
    names = {".".join(["tokkata", *folder.relative_to(ROOT).parts]) for folder in folders}
    assert set(listed) == names
