"""What decides a model's shape and what it is told, as it travels in `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from .conditions import Conditions
from .errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Settings that become JSON and come back; each family adds its own."""

    kind: ClassVar[str]
    """The family, as recipes name it."""

    conditions: Conditions = field(default_factory=Conditions)
    """What the model is told about a clip; empty for nothing."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`; raises `UserError` that names unknown or missing settings."""
        values = {name: value for name, value in values.items() if name != "kind"}
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known.keys())
        required = {
            name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING
        }
        missing = sorted(required - values.keys())
        if unknown or missing:
            raise UserError(
                f"this is not the configuration of a {cls.kind}:"
                f" unknown settings {unknown}, missing settings {missing}"
            )
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists, "conditions": Conditions.from_list(values.get("conditions", []))})

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {"kind": self.kind} | values | lists | {"conditions": self.conditions.to_list()}
