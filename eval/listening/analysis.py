"""All statistics of a listening test, as plain values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...core.errors import UserError
from ..bootstrap import Interval
from .agreement import RepeatConsistency, krippendorff_alpha, repeat_consistency
from .comparison import Comparison, adjusted, compare, compare_preferences, rules_for, too_few
from .correlation import RankCorrelation, correlate
from .definition import Definition, Method
from .exclusions import Excluded, rules, screen
from .grid import build_grid, counted
from .intervals import NoIntervalError, naive_interval, two_way, within_scale
from .preference import Answers, Preferences, fit_preferences, read_answers
from .ratings import Rating


@dataclass(frozen=True)
class Opinion:
    """How one system was rated in one attribute."""

    attribute: str
    system: str
    role: str
    num_ratings: int
    num_listeners: int
    num_items: int
    mean: float
    """The mean opinion score: the mean of all ratings."""
    histogram: Sequence[int]
    """Ratings in each bin of `bins`."""
    interval: Interval | None = None
    """For other listeners and other items."""
    naive: Interval | None = None
    """As if the ratings were independent."""
    note: str = ""
    """Why there is no interval."""


@dataclass(frozen=True)
class Pair:
    """How often each answer was given to one pair of systems."""

    attribute: str
    system: str
    against: str
    preferred: int
    """Answers for `system`."""
    other: int
    """Answers for `against`."""
    neither: int


@dataclass(frozen=True)
class Agreement:
    """Whether listeners agree in one attribute."""

    attribute: str
    alpha: float | None
    """Krippendorff's, for ordinal data, over the clips of the systems; none where it is not defined."""


@dataclass(frozen=True)
class Results:
    """What one choice of ratings says."""

    num_listeners: int
    num_ratings: int
    opinions: Sequence[Opinion] = ()
    comparisons: Sequence[Comparison] = ()
    pairs: Sequence[Pair] = ()
    preferences: Mapping[str, Preferences] = field(default_factory=dict)
    """By attribute; A/B only."""
    agreements: Sequence[Agreement] = ()
    repeats: RepeatConsistency | None = None


@dataclass(frozen=True)
class Analysis:
    """Everything that the report shows."""

    name: str
    method: Method
    scale: tuple[float, float]
    min_listeners: int
    kept: Results
    """Without what the definition's rules exclude."""
    everyone: Results
    """With it."""
    rules: Sequence[str]
    excluded: Sequence[Excluded]
    num_unheard: int
    """Ratings left out because too little of the clip was heard, of listeners who were not excluded."""
    correlations: Sequence[RankCorrelation] = ()


def bins(method: Method) -> list[tuple[float, float]]:
    """Lowest and highest whole rating of each bin of a distribution."""
    if method == "acr":
        return [(value, value) for value in (1.0, 2.0, 3.0, 4.0, 5.0)]
    return [(10.0 * index, 10.0 * index + (10.0 if index == 9 else 9.0)) for index in range(10)]


def analyse(
    definition: Definition, ratings: Sequence[Rating], scores: Mapping[str, Mapping[str, float]] | None = None
) -> Analysis:
    """All statistics of `ratings`; `scores` are computed scores by name and by system.

    Raises `UserError` if there is no rating that counts.
    """
    attributes = [attribute.name for attribute in definition.attributes]
    if not any(counted(ratings, attribute) for attribute in attributes):
        raise UserError(
            f"'{definition.name}' has no ratings yet besides practice: nothing can be reported before a"
            " listener has rated"
        )
    screened = screen(ratings, definition)
    kept = _results(definition, screened.kept)
    return Analysis(
        name=definition.name,
        method=definition.method,
        scale=definition.scale,
        min_listeners=definition.min_listeners,
        kept=kept,
        everyone=_results(definition, ratings),
        rules=rules(definition),
        excluded=screened.excluded,
        num_unheard=len(screened.unheard),
        correlations=_correlations(kept.opinions, scores or {}),
    )


def _results(definition: Definition, ratings: Sequence[Rating]) -> Results:
    attributes = [attribute.name for attribute in definition.attributes]
    rows = [rating for attribute in attributes for rating in counted(ratings, attribute)]
    found = Results(
        num_listeners=len({rating.listener for rating in rows}),
        num_ratings=len(rows),
        repeats=repeat_consistency(ratings, definition.method),
    )
    if not rows:
        return found
    return (_preferred if definition.method == "ab" else _rated)(definition, ratings, attributes, found)


def _rated(
    definition: Definition, ratings: Sequence[Rating], attributes: Sequence[str], found: Results
) -> Results:
    """The results of a test that asks for a rating on a scale."""
    opinions, comparisons, agreements = [], [], []
    for attribute in attributes:
        roles = {rating.system: rating.role for rating in counted(ratings, attribute)}
        systems = _ordered(definition, roles)
        grid = build_grid(ratings, attribute, systems)
        opinions += [
            _opinion(grid.of(system), attribute, system, roles[system], definition) for system in systems
        ]
        scored = [system for system in systems if roles[system] == "scored"]
        pairs = list(itertools.combinations(scored, 2))
        if len(scored) == 1 and "reference" in systems:
            pairs = [(scored[0], "reference")]
        test = rules_for(len(pairs) * len(attributes), definition.min_listeners, definition.seed)
        comparisons += [compare(grid, attribute, one, other, test) for one, other in pairs]
        stimuli = [grid.of(system) for system in scored]
        alpha = krippendorff_alpha(np.concatenate(stimuli, axis=1)) if stimuli else None
        agreements.append(Agreement(attribute, alpha))
    return Results(
        num_listeners=found.num_listeners,
        num_ratings=found.num_ratings,
        repeats=found.repeats,
        opinions=opinions,
        comparisons=adjusted(comparisons),
        agreements=agreements,
    )


def _ordered(definition: Definition, systems: Mapping[str, str]) -> list[str]:
    """The systems that have ratings: those under test first, then recordings, then anchors."""
    under_test = [system.name for system in definition.systems if system.name in systems]
    fixed = [name for name in ("reference", "reconstructed") if name in systems]
    return under_test + fixed + sorted(set(systems) - {*under_test, *fixed})


def _opinion(values: np.ndarray, attribute: str, system: str, role: str, definition: Definition) -> Opinion:
    """Mean and intervals of the ratings `values` [L, I] of one system."""
    rated = values[~np.isnan(values)]
    num_listeners = int((~np.isnan(values)).any(axis=1).sum())
    # Averages of several ratings of a cell fall between whole numbers.
    whole = np.rint(rated)
    interval, naive, note = None, None, ""
    if num_listeners < definition.min_listeners:
        note = too_few(num_listeners, definition.min_listeners)
    else:
        try:
            interval = within_scale(two_way(values, seed=definition.seed).interval, *definition.scale)
            naive = within_scale(naive_interval(values), *definition.scale)
        except NoIntervalError as error:
            note = f"No interval: {error}."
    return Opinion(
        attribute=attribute,
        system=system,
        role=role,
        num_ratings=len(rated),
        num_listeners=num_listeners,
        num_items=int((~np.isnan(values)).any(axis=0).sum()),
        mean=float(rated.mean()),
        histogram=[int(np.sum((low <= whole) & (whole <= high))) for low, high in bins(definition.method)],
        interval=interval,
        naive=naive,
        note=note,
    )


def _preferred(
    definition: Definition, ratings: Sequence[Rating], attributes: Sequence[str], found: Results
) -> Results:
    """The results of an A/B test."""
    pairs, comparisons, agreements = [], [], []
    preferences: dict[str, Preferences] = {}
    for attribute in attributes:
        rows = counted(ratings, attribute)
        named = {name for rating in rows for name in (rating.system, rating.against) if name is not None}
        answers = read_answers(ratings, attribute, _ordered(definition, dict.fromkeys(named, "scored")))
        pairs += _pairs(answers, attribute)
        test = rules_for(len(answers.pairs) * len(attributes), definition.min_listeners, definition.seed)
        names = [(answers.systems[one], answers.systems[other]) for one, other in answers.pairs]
        comparisons += [
            compare_preferences(answers.of_pair(index), attribute, one, other, test)
            for index, (one, other) in enumerate(names)
        ]
        preferences[attribute] = _strengths(answers, definition)
        units = [answers.of_pair(index) for index in range(len(answers.pairs))]
        agreements.append(Agreement(attribute, krippendorff_alpha(np.concatenate(units, axis=1))))
    return Results(
        num_listeners=found.num_listeners,
        num_ratings=found.num_ratings,
        repeats=found.repeats,
        comparisons=adjusted(comparisons),
        pairs=pairs,
        preferences=preferences,
        agreements=agreements,
    )


def _pairs(answers: Answers, attribute: str) -> list[Pair]:
    """How often each answer was given."""
    totals = answers.counts.sum(axis=(0, 1)).astype(int)
    return [
        Pair(attribute, answers.systems[i], answers.systems[j], *(int(count) for count in total))
        for (i, j), total in zip(answers.pairs, totals, strict=True)
    ]


def _strengths(answers: Answers, definition: Definition) -> Preferences:
    """Bradley–Terry strengths; without intervals below the minimum of listeners."""
    enough = len(answers.listeners) >= definition.min_listeners
    try:
        return fit_preferences(
            answers,
            seed=definition.seed,
            intervals=enough,
            note="" if enough else too_few(len(answers.listeners), definition.min_listeners),
        )
    except NoIntervalError as error:
        return Preferences([], None, f"No strengths: {error}.")


def _correlations(
    opinions: Sequence[Opinion], scores: Mapping[str, Mapping[str, float]]
) -> list[RankCorrelation]:
    """One for each attribute and each score."""
    found = []
    for attribute in dict.fromkeys(opinion.attribute for opinion in opinions):
        means = {
            opinion.system: opinion.mean
            for opinion in opinions
            if opinion.attribute == attribute and opinion.role != "anchor"
        }
        for score, of_system in scores.items():
            pairs = {
                system: (mean, of_system[system]) for system, mean in means.items() if system in of_system
            }
            found.append(correlate(attribute, score, pairs))
    return found
