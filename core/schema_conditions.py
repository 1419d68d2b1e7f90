"""What a recipe says of the conditions of a model; part of `schema.py`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from .sections import PositiveFloat, PositiveInt, Section


class ModelCondition(Section):
    """Something that a model is told about each clip. In a recipe, `pitch` is short for `{name: pitch}`."""

    name: str
    """A label column of the corpus, such as `pitch` or `tags`, a feature of `tokenize.features`, or, as
    Stable Audio has them, `seconds_start`: where in its clip a crop begins, and `seconds_total`: the clip's
    length."""
    fuse: Literal["sum", "prepend", "cross"] = "sum"
    """How it enters: summed into every step (of a sequence, its mean), prepended to the steps, or attended to
    by cross-attention."""
    length: PositiveInt | None = None
    """Of a feature with many vectors a clip: pad or cut every clip's to this many; null: the longest of a
    batch decides."""
    maximum: PositiveFloat | None = None
    """Tell a label column of numbers as a number from 0 to this, not as one of the values that occur. Of
    `seconds_start` and `seconds_total`, which are always numbers: null is the length of the longest clip."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        section = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [{"type": "string", "description": "A label column or a feature."}, section]}
