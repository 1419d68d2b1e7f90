"""From a YAML file and `key=value` overrides to a checked `Recipe`, or to one sentence for each fault."""

from __future__ import annotations

import difflib
import json
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import UserError
from .schema import Recipe

SectionType = TypeVar("SectionType", bound=BaseModel)


class RecipeError(UserError):
    """The faults of a recipe, one line each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


# --- YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values (so that `1e-3` is a number and `no` is text), and no key given twice."""


class _Dumper(yaml.SafeDumper):
    """Quotes all that either version of YAML would take for something other than text."""


_FLOAT = re.compile(
    r"[-+]?(\.\d+|\d+\.\d*)([eE][-+]?\d+)?$|[-+]?\d+[eE][-+]?\d+$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
    re.ASCII,
)
_PLAIN_VALUES = (
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?(0|[1-9]\d*)$", re.ASCII), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<$"), ["<"]),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                problem = f"key '{key.value}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.yaml_implicit_resolvers = {}  # without YAML 1.1's, which every loader inherits
for _tag, _pattern, _first in _PLAIN_VALUES:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise RecipeError([f"{where} is not valid YAML{line}: {problem}"]) from error


# --- recipes


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at `path`, apply overrides such as `train.steps=200`, check everything.

    Raises `RecipeError` with one sentence for each fault.
    """
    values = read_yaml(path, "recipe", "'data:' and 'model:'")
    for override in overrides:
        _apply_override(values, override)
    return check_recipe(values)


def read_yaml(path: Path, what: str, sections: str) -> dict[str, Any]:
    """The settings in the file at `path`, unchecked; raises `RecipeError`.

    `what` the file is, and which `sections` it might hold, are words for that error's sentences.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not a text file"
        )
        raise RecipeError([f"{what} {path} cannot be read: {reason}"]) from error
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise RecipeError([f"{what} {path} must hold sections such as {sections}"])
    return values


def check_recipe(values: dict[str, Any]) -> Recipe:
    """The recipe that nested `values` describe; raises `RecipeError`."""
    return check_section(Recipe, values)


def check_section(section: type[SectionType], values: dict[str, Any]) -> SectionType:
    """The `section` that nested `values` describe; raises `RecipeError`."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise RecipeError([_sentence(section, details) for details in error.errors()]) from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back."""
    values = recipe.model_dump(mode="json")
    if values["codec"] is None:
        del values["codec"]
    return dump_yaml(values)


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML that `read_yaml` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


# --- overrides


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError([f"'{override}' is not an override: write key=value, such as train.steps=200"])
    *sections, last = key.split(".")
    target: Any = values
    for name in sections:
        target = _step_into(target, name, key)
    value = _parse_yaml(text, f"the value of {key}")
    if isinstance(target, list):
        target[_list_index(target, last, key)] = value
    else:
        target[last] = value


def _step_into(target: Any, name: str, key: str) -> Any:
    position = _list_index(target, name, key) if isinstance(target, list) else name
    if isinstance(target, dict) and target.get(name) is None:
        target[name] = {}
    inner = target[position]
    if not isinstance(inner, dict | list):
        raise RecipeError([f"'{key}' cannot be set: '{name}' is {_shown(inner)}, not a section"])
    return inner


def _list_index(target: list[Any], name: str, key: str) -> int:
    if not name.isdecimal() or int(name) >= len(target):
        raise RecipeError([f"'{key}' cannot be set: '{name}' must be a position from 0 to {len(target) - 1}"])
    return int(name)


# --- faults

# What a setting of the type that pydantic names should have been.
_EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number from {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number up to {le:g}",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "text of the form {pattern}",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} at most",
    "model_type": "a section",
    "model_attributes_type": "a section",
}


def _sentence(root: type[BaseModel], fault: ErrorDetails) -> str:
    """One fault of the values of `root`: which key, what it is, what was expected."""
    place = _place(root, fault["loc"])
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        return f"{place.key}: {context['error']}" if place.key else str(context["error"])
    if kind == "missing":
        return f"'{place.key}' is missing"
    if kind == "extra_forbidden":
        section, _, name = place.key.rpartition(".")
        prefix = f"{section}." if section else ""
        known = list(place.section.model_fields)
        return f"unknown key '{place.key}'" + (
            _suggestion(name, known, prefix) or f": known here are {', '.join(known)}"
        )
    if kind == "union_tag_not_found":
        return f"'{place.key}.kind' is missing: {_alternatives(place.kinds)} is expected"
    if kind == "union_tag_invalid":
        given, known = context["tag"], list(place.kinds)
        return f"'{place.key}.kind' cannot be '{given}'" + (
            _suggestion(given, known) or f": {_alternatives(known)} is expected"
        )
    given = fault["input"]
    refused = f"'{place.key}' cannot be {_shown(given)}"
    if kind == "literal_error":
        known = re.findall("'(.*?)'", context["expected"])
        return refused + (_suggestion(given, known) or f": {_alternatives(known)} is expected")
    if kind in _EXPECTED:
        return f"{refused}: {_EXPECTED[kind].format_map(context)} is expected"
    return f"{refused}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


@dataclass(frozen=True)
class _Place:
    """Where in a recipe a fault is."""

    key: str
    """Dotted, as a user writes it."""
    section: type[BaseModel]
    """The section that the key's last name is in."""
    kinds: dict[str, type[BaseModel]]
    """If the key is a section of several kinds: those."""


def _place(root: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    """Pydantic's location, in which the kind of a section follows its name, as a place in `root`."""
    section = root
    names: list[str] = []
    kinds: dict[str, type[BaseModel]] = {}
    below: type[BaseModel] | None = None
    for part in location:
        if part in kinds:
            below, kinds = kinds[str(part)], {}
            continue
        names.append(str(part))
        if isinstance(part, int):
            continue  # an entry of a list is described by the list's type
        section, below = below or section, None
        field = section.model_fields.get(part)
        members = list(_members(field.annotation)) if field else []
        kinds = {kind: member for member in members for kind in _kinds(member)}
        if len(members) == 1:
            below = members[0]
    return _Place(".".join(names), section, kinds)


def _members(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a type names, such as those of a union or of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _members(part)


def _kinds(section: type[BaseModel]) -> tuple[str, ...]:
    return typing.get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()


def _suggestion(given: Any, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(str(given), known, n=1)
    return f", did you mean '{prefix}{close[0]}'?" if close else ""


def _alternatives(names: Iterable[str]) -> str:
    *most, last = [f"'{name}'" for name in names]
    return f"{', '.join(most)} or {last}" if most else last


def _shown(value: Any) -> str:
    """A value as YAML has it, short enough for a sentence."""
    if isinstance(value, str):
        return f"'{textwrap.shorten(value, 60)}'"
    return textwrap.shorten(json.dumps(value, default=str, ensure_ascii=False), 60)
