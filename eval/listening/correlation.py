"""Whether a computed score ranks systems as listeners do."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ...core.errors import UserError
from ..bootstrap import LEVEL, Interval

MIN_SYSTEMS = 4
"""With three systems even a perfect rank correlation comes by chance in one case of three."""
MAX_EXACT = 8
"""Systems up to which all orders are counted for the p-value: 8! = 40,320."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation of mean opinion scores and a computed score, over systems."""

    attribute: str
    score: str
    systems: Sequence[str]
    rho: float | None
    """−1…1; none with too few systems. For a distance such as FAD, −1 is perfect."""
    interval: Interval | None
    p: float | None
    note: str = ""
    """Why something is missing."""


def correlate(attribute: str, score: str, pairs: Mapping[str, tuple[float, float]]) -> RankCorrelation:
    """Correlate over systems; `pairs` holds the mean opinion score and the computed score of each."""
    systems = list(pairs)
    if len(systems) < MIN_SYSTEMS:
        count = "1 system has" if len(systems) == 1 else f"{len(systems)} systems have"
        note = f"No correlation: {count} both a mean opinion score and '{score}', and it needs {MIN_SYSTEMS}."
        return RankCorrelation(attribute, score, systems, None, None, None, note)
    opinions, scores = (np.array(column) for column in zip(*pairs.values(), strict=True))
    if np.ptp(opinions) == 0.0 or np.ptp(scores) == 0.0:
        note = "No correlation: one of the two is the same for all systems."
        return RankCorrelation(attribute, score, systems, None, None, None, note)
    rho = _spearman(opinions, scores)
    return RankCorrelation(
        attribute, score, systems, rho, spearman_interval(rho, len(systems)), spearman_p(opinions, scores)
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def spearman_interval(rho: float, num: int, level: float = LEVEL) -> Interval:
    """Interval of Spearman's correlation `rho` of `num` pairs, for other systems of the same kind.

    Fisher's z with the standard error of Bonett and Wright, Psychometrika 65, 2000. ±1, which chance gives
    easily with few pairs, has no z: it counts as half a step less, 6/(n³ − n), for its inner end, and its
    outer end is ±1. Too wide rather than too narrow for fewer than 8 pairs.
    """
    half_step = 6 / (num**3 - num)
    bound = 1 - half_step
    z = math.atanh(min(max(rho, -bound), bound))
    error = math.sqrt((1 + min(abs(rho), bound) ** 2 / 2) / (num - 3))
    reach = float(stats.norm.ppf(0.5 + level / 2)) * error
    low = -1.0 if rho <= -bound else math.tanh(z - reach)
    high = 1.0 if rho >= bound else math.tanh(z + reach)
    return Interval(low, high, level)


def spearman_p(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p: the share of all orders of `b` whose correlation is as far from 0 (exact to 8 pairs)."""
    observed = abs(_spearman(a, b))
    if len(a) > MAX_EXACT:
        return float(stats.spearmanr(a, b).pvalue)
    ranks_a, ranks_b = (stats.rankdata(one) - (len(a) + 1) / 2 for one in (a, b))
    orders = np.array(list(itertools.permutations(ranks_b)))
    found = np.abs(orders @ ranks_a) / math.sqrt(float(ranks_a @ ranks_a) * float(ranks_b @ ranks_b))
    return float(np.mean(found >= observed - 1e-12))


GENERATED = "generated"
"""The row of a run's `scores.json` that is about the system itself."""


def gather_scores(sources: Sequence[str], systems: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores by name and by system, from JSON files.

    A source is `PATH` of `{"ours": {"fad": 3.1}, "baseline": {"fad": 5.2}}` (a number in place of the inner
    braces is called `score`), `PATH` of the `scores.json` of `tokkata eval` on folders, or `SYSTEM=PATH` of
    the `scores.json` of a run, whose row `generated` it takes. Raises `UserError` if it is none of these.
    """
    found: dict[str, dict[str, float]] = {}
    for source in sources:
        system, equals, path = source.partition("=")
        if equals and system in systems:
            rows = _read_scores(Path(path))
            if GENERATED not in rows:
                raise UserError(
                    f"scores {path} have no row '{GENERATED}': give the eval/scores.json of a run"
                )
            rows = {system: rows[GENERATED]}
        else:
            rows = _read_scores(Path(source))
            if not set(rows) & set(systems):
                raise UserError(
                    f"scores {source} name none of the systems {', '.join(systems)}: write SYSTEM=PATH, or a"
                    " file with their names"
                )
        for name, scores in rows.items():
            for score, value in scores.items():
                found.setdefault(score, {})[name] = value
    return found


def _read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Scores by row and by name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"scores {path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise UserError(f"scores {path} are not valid JSON: {error}") from error
    try:
        return _found(path, content)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"scores {path} look like those of this program, but have rows without a name: {error}"
        ) from error


def _found(path: Path, content: Any) -> dict[str, dict[str, float]]:
    """The same of a file's `content`."""
    if not isinstance(content, dict):
        raise UserError(f"scores {path} must map the name of each system to its scores")
    found: dict[str, dict[str, float]] = {}
    if isinstance(content.get("embeddings"), list):  # of `tokkata eval` on folders, one table an embedding
        for table in content["embeddings"]:
            for system, scores in _by_name(table["rows"]).items():
                named = {f"{name}, {table['info']['name']}": value for name, value in scores.items()}
                found.setdefault(system, {}).update(named)
    elif isinstance(content.get("rows"), list):
        found = _by_name(content["rows"])
    else:
        found = {str(system): _numbers(scores) for system, scores in content.items()}
    if not any(found.values()):
        raise UserError(f"scores {path} hold no number for any system")
    return found


def _by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {str(row["name"]): _numbers(row) for row in rows}


def _numbers(scores: Any) -> dict[str, float]:
    """The scores of one row: those in its list `scores`, or all its numbers but counts."""
    named = scores if isinstance(scores, dict) else {"score": scores}
    if isinstance(named.get("scores"), list):
        named = {str(score["name"]): score for score in named["scores"]}
    numbers = {name: _number(value) for name, value in named.items() if not name.startswith("num_")}
    return {name: number for name, number in numbers.items() if number is not None}


def _number(value: Any) -> float | None:
    """A finite number, or that of a score that carries one beside its details."""
    if isinstance(value, dict):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
