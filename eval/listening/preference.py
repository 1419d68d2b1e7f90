"""How strongly each system is preferred, from A/B answers with ties: Bradley and Terry's model.

Davidson's extension (J. Amer. Statist. Assoc. 65, 1970) of the model of Bradley and Terry, with strengths
πₖ = exp(βₖ) and ν = exp(δ) for how often there is no difference:

    P(i preferred to j) : P(j to i) : P(neither) = πᵢ : πⱼ : ν √(πᵢ πⱼ)

It is a logistic model in (β, δ), so its likelihood has one maximum.

Shapes: K systems, P pairs of systems, O = 3 outcomes of a pair, D = K + 1 parameters, L listeners, I items,
B resamples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..bootstrap import LEVEL, Interval
from .grid import counted
from .intervals import LEAST_SHARE, NUM_RESAMPLES, NoIntervalError, draw_counts
from .ratings import Rating

PRIOR_SD = 5.0
"""Standard deviation of a normal prior of each parameter. So weak that it hardly moves an estimate that the
answers decide; it keeps finite the strength of a system that won every comparison."""

MAX_ITERATIONS = 100
MAX_STEP = 2.0
"""Longest step of any parameter in one iteration: a full Newton step from far away can overshoot."""
TOLERANCE = 1e-9
MAX_NUMBERS = 20_000_000
"""Numbers in the largest array of one piece of the resamples: 160 MB."""


class NotConvergedError(RuntimeError):
    """The likelihood's maximum was not found."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A/B answers by listener, item, pair and outcome."""

    systems: Sequence[str]
    pairs: Sequence[tuple[int, int]]
    listeners: Sequence[str]
    items: Sequence[str]
    counts: np.ndarray  # [L, I, P, O] float64; outcomes: the first preferred, the second, neither

    def of_pair(self, pair: int) -> np.ndarray:
        """Answers [L, I] of one pair: 1 for the first system, −1 the second, 0 neither, NaN not asked."""
        won, lost, tied = np.moveaxis(self.counts[:, :, pair], -1, 0)
        total = won + lost + tied
        return np.where(total > 0, (won - lost) / np.where(total > 0, total, 1), np.nan)


def read_answers(ratings: Iterable[Rating], attribute: str, systems: Sequence[str]) -> Answers:
    """The first answers of an A/B test about `attribute`."""
    rows = [rating for rating in counted(ratings, attribute) if rating.against is not None]
    listeners = sorted({rating.listener for rating in rows})
    items = sorted({rating.item for rating in rows})
    asked = {frozenset((rating.system, rating.against)) for rating in rows}
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(systems)), 2)
        if frozenset((systems[i], systems[j])) in asked
    ]
    counts = np.zeros((len(listeners), len(items), len(pairs), 3))
    pair_of = {(systems[i], systems[j]): index for index, (i, j) in enumerate(pairs)}
    listener_of = {name: index for index, name in enumerate(listeners)}
    item_of = {name: index for index, name in enumerate(items)}
    for rating in rows:
        assert rating.against is not None, "chosen above"
        forward = (rating.system, rating.against) in pair_of
        pair = pair_of[(rating.system, rating.against) if forward else (rating.against, rating.system)]
        outcome = {1.0: 0, 0.0: 1, 0.5: 2}[rating.value if forward else 1.0 - rating.value]
        counts[listener_of[rating.listener], item_of[rating.item], pair, outcome] += 1
    return Answers(systems, pairs, listeners, items, counts)


def design(num_systems: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The model's log-weights of outcomes as linear functions of the parameters, [P, O, D]."""
    found = np.zeros((len(pairs), 3, num_systems + 1))
    for index, (i, j) in enumerate(pairs):
        found[index, 0, i] = found[index, 1, j] = 1.0
        found[index, 2, [i, j]] = 0.5
        found[index, 2, -1] = 1.0
    return found


@dataclass(frozen=True, eq=False)
class Fit:
    """Maxima of the likelihood, and what their errors are computed from."""

    parameters: np.ndarray  # [B, D]
    probabilities: np.ndarray  # [B, P, O]
    information: np.ndarray  # [B, D, D]


def fit_davidson(counts: np.ndarray, model: np.ndarray, prior_sd: float = PRIOR_SD) -> Fit:
    """Fit the `model` [P, O, D] to each of the `counts` [B, P, O] by Newton's method.

    The strengths βₖ of a fit sum to 0: only their differences matter to the likelihood, and the prior's
    maximum is where they are smallest. Raises `NotConvergedError`, which no counts are known to cause.
    """
    num_parameters = model.shape[-1]
    precision = 1 / prior_sd**2
    parameters = np.zeros((len(counts), num_parameters))
    totals = counts.sum(axis=2)  # [B, P]
    for _ in range(MAX_ITERATIONS):
        probabilities = _probabilities(parameters, model)
        means = np.einsum("bpo,pod->bpd", probabilities, model)
        gradient = np.einsum("bpo,pod->bd", counts, model) - np.einsum("bp,bpd->bd", totals, means)
        gradient -= precision * parameters
        squares = np.einsum("bpo,pod,poe->bpde", probabilities, model, model, optimize=True)
        spread = squares - means[:, :, :, None] * means[:, :, None, :]
        information = np.einsum("bp,bpde->bde", totals, spread) + precision * np.eye(num_parameters)
        step = np.linalg.solve(information, gradient[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        parameters = parameters + step * np.minimum(1.0, MAX_STEP / np.maximum(longest, TOLERANCE))
        if longest.max() < TOLERANCE:
            return Fit(parameters, _probabilities(parameters, model), information)
    raise NotConvergedError(
        f"the Bradley–Terry model has not converged after {MAX_ITERATIONS} iterations: please report this"
    )


def _probabilities(parameters: np.ndarray, model: np.ndarray) -> np.ndarray:
    weights = np.einsum("bd,pod->bpo", parameters, model)
    weights = np.exp(weights - weights.max(axis=2, keepdims=True))
    found: np.ndarray = weights / weights.sum(axis=2, keepdims=True)
    return found


@dataclass(frozen=True)
class Strength:
    """How strongly a system is preferred."""

    system: str
    value: float
    """βₖ: the logarithm of its strength; the systems' mean is 0."""
    interval: Interval | None
    """For other listeners and other items."""


@dataclass(frozen=True)
class Preferences:
    """The fitted model."""

    strengths: Sequence[Strength]
    tie: float | None
    """ν: how often two equal systems make no difference, as a ratio to how often the one is preferred."""
    note: str = ""
    """Why there are no intervals."""


def fit_preferences(
    answers: Answers, *, seed: int, intervals: bool = True, note: str = "", num_resamples: int = NUM_RESAMPLES
) -> Preferences:
    """Fit the model to `answers`, with two-way cluster-bootstrap intervals or with a `note` why without.

    Raises `NoIntervalError` where the comparisons do not connect all systems.
    """
    if not _connected(len(answers.systems), answers.pairs):
        raise NoIntervalError("some systems have not been compared with the others, even through a third")
    model = design(len(answers.systems), answers.pairs)
    fit = fit_davidson(answers.counts.sum(axis=(0, 1))[None], model)
    strengths = fit.parameters[0, :-1]
    found: Sequence[Interval | None] = [None] * len(strengths)
    if intervals:
        try:
            found = strength_intervals(answers, model, fit, seed=seed, num_resamples=num_resamples)
        except NoIntervalError as error:
            note = f"No interval: {error}."
    return Preferences(
        [
            Strength(system, float(value), interval)
            for system, value, interval in zip(answers.systems, strengths, found, strict=True)
        ],
        float(np.exp(fit.parameters[0, -1])),
        note,
    )


def _connected(num_systems: int, pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether each system can be reached from the first over `pairs`."""
    reached = {0}
    for _ in range(num_systems):
        reached |= {system for pair in pairs if reached & set(pair) for system in pair}
    return len(reached) == num_systems


def strength_intervals(
    answers: Answers,
    model: np.ndarray,
    fit: Fit,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
) -> list[Interval]:
    """Intervals of the strengths βₖ for other listeners and other items.

    The same symmetric bootstrap-t over listeners and items as that of means (intervals.py), with the model's
    two-way clustered sandwich as standard error. Raises `NoIntervalError` for fewer than two listeners or
    items, and if all answers are equal.
    """
    num_listeners, num_items = answers.counts.shape[:2]
    if num_listeners < 2 or num_items < 2:
        raise NoIntervalError("it needs at least two listeners and two items")
    generator = np.random.default_rng(seed)
    listeners = draw_counts(num_listeners, generator, num_resamples)
    items = draw_counts(num_items, generator, num_resamples)
    errors = _standard_errors(answers, model, fit, np.ones((1, num_listeners)), np.ones((1, num_items)))
    if not (errors > 0).all():
        raise NoIntervalError("the answers do not vary, so nothing says how far others would differ")
    # Piece by piece, because the answers of each listener in each resample need memory.
    pieces = -(-num_resamples * answers.counts.size // min(num_listeners, num_items) // MAX_NUMBERS)
    ratios = np.concatenate(
        [
            _ratios(answers, model, fit, errors[0], *piece)
            for piece in zip(np.array_split(listeners, pieces), np.array_split(items, pieces), strict=True)
        ]
    )
    reach = np.quantile(ratios, level, axis=0, method="higher")
    halves = reach * errors[0]
    return [
        Interval(float(value - half), float(value + half), level)
        for value, half in zip(fit.parameters[0, :-1], halves, strict=True)
    ]


def _ratios(
    answers: Answers,
    model: np.ndarray,
    fit: Fit,
    errors: np.ndarray,
    listeners: np.ndarray,
    items: np.ndarray,
) -> np.ndarray:
    """Deviations [B, K] of resampled strengths from those of `fit`, in units of their standard errors."""
    resampled = np.einsum("bl,bi,lipo->bpo", listeners, items, answers.counts, optimize=True)
    fits = fit_davidson(resampled, model)
    own = np.maximum(_standard_errors(answers, model, fits, listeners, items), np.sqrt(LEAST_SHARE) * errors)
    found: np.ndarray = np.abs(fits.parameters - fit.parameters)[:, :-1] / own
    return found


def _standard_errors(
    answers: Answers, model: np.ndarray, fit: Fit, listeners: np.ndarray, items: np.ndarray
) -> np.ndarray:
    """Standard errors [B, K] of the strengths under weights of `listeners` [B, L] and of `items` [B, I]."""
    means = np.einsum("bpo,pod->bpd", fit.probabilities, model)
    # What one answer adds to each estimate: its score through the inverse information, [B, P, O, K].
    scores = model[None] - means[:, :, None, :]
    inverse = np.linalg.inv(fit.information)
    shares = np.einsum("bpod,bde->bpoe", scores, inverse)[..., :-1]
    counts = answers.counts
    by_listener = np.einsum(
        "blpo,bpok->blk", np.einsum("bi,lipo->blpo", items, counts, optimize=True), shares, optimize=True
    )
    by_item = np.einsum(
        "bipo,bpok->bik", np.einsum("bl,lipo->bipo", listeners, counts, optimize=True), shares, optimize=True
    )
    num_listeners, num_items = counts.shape[:2]
    between_listeners = np.einsum("bl,blk->bk", listeners, by_listener**2)
    between_listeners *= num_listeners / (num_listeners - 1)
    between_items = np.einsum("bi,bik->bk", items, by_item**2) * num_items / (num_items - 1)
    resampled = np.einsum("bl,bi,lipo->bpo", listeners, items, counts, optimize=True)
    between_answers = np.einsum("bpo,bpok->bk", resampled, shares**2)
    both = between_listeners + between_items - between_answers
    errors: np.ndarray = np.sqrt(np.maximum.reduce([both, between_listeners, between_items]))
    return errors
