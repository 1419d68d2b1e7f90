"""What every section of a recipe is built from: strict pydantic models and annotated numbers.

Settings marked `OPERATIONAL` change how a stage runs (how often it logs, how many workers read audio) but
not one bit of what it writes, so changing them never reruns a stage.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

OPERATIONAL: dict[str, Any] = {"operational": True}


def _refuse_bool(value: object) -> object:
    # Python, and so pydantic, counts true and false as 1 and 0.
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


NOT_BOOL = BeforeValidator(_refuse_bool)  # stands last, or JSON Schema loses the limits before it
Integer = Annotated[int, NOT_BOOL]
Fraction = Annotated[float, Field(ge=0.0, le=1.0), NOT_BOOL]
PositiveInt = Annotated[int, Field(gt=0), NOT_BOOL]
PositiveFloat = Annotated[float, Field(gt=0.0), NOT_BOOL]
Split = Literal["train", "valid", "test"]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
