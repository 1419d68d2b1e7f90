"""Features that a model was told of before it is trained further: a store must have them of its encoders."""

from __future__ import annotations

import dataclasses

from ...core.conditions import Condition
from ...core.errors import UserError
from ..store import TokenStore
from .feature import FeatureInfo


def inherited_feature(source: str, condition: Condition, store: TokenStore) -> Condition:
    """A model's `condition` that is a sequence, as `store` has it; `source` is what errors call the model.

    Raises `UserError` if the store does not have it, or has it from another encoder.
    """
    name = condition.name
    info = store.features.get(name)
    if info is None:
        raise UserError(
            f"{source} is told '{name}', which the tokens do not have:"
            f" add {_wanted(condition)} to tokenize.features"
        )
    if condition.feature is not None:
        wanted = FeatureInfo.from_json(condition.feature, f"condition '{name}' of {source}")
        wanted.check_matches(info, f"feature '{name}' does not fit {source}")
    if info.dim != condition.width:
        raise UserError(f"feature '{name}' has width {info.dim}, but {source} needs {condition.width}")
    return dataclasses.replace(condition, feature=info.to_json())


def _wanted(condition: Condition) -> str:
    """The entry of `tokenize.features` that a condition needs, as YAML."""
    if condition.feature is None:
        return f"a feature of width {condition.width} with that name"
    info = FeatureInfo.from_json(condition.feature, f"condition '{condition.name}'")
    encoder = f", encoder: {info.encoder}" if info.encoder else ""
    return f"{{kind: {info.kind}, name: {condition.name}{encoder}}}"
