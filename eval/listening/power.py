"""How many listeners a difference needs: studies are simulated and tested as the report tests them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ...core.errors import UserError
from ...core.progress import track
from .comparison import ALPHA
from .definition import load_definition
from .exclusions import screen
from .grid import build_grid
from .intervals import NoIntervalError, two_way
from .ratings import read_ratings
from .simulation import ACR, RaterModel, Scale, fitted_model, simulate

ENOUGH = 0.8
"""The power that is usually asked for."""
NUM_RESAMPLES = 399
"""Resamples of each simulated study, for each comparison: p-values need to be right only around the level."""


@dataclass(frozen=True)
class Power:
    """The chance of finding a difference."""

    num_listeners: int
    power: float
    """Share of simulated studies whose p is below the level."""
    error: float
    """Standard error of that share, from the number of studies."""


@dataclass(frozen=True)
class Plan:
    """A study of two systems that is to be held, and how it is simulated."""

    difference: float
    """Between the means of the systems, in points of the scale; they lie on both sides of its middle."""
    num_items: int = 20
    items_per_listener: int | None = None
    """Items that each listener rates; None for all."""
    comparisons: int = 1
    """Pairs of systems: p must be below 5 % over their number, as Holm's correction asks of the smallest."""
    num_studies: int = 500
    seed: int = 0


def power_of(plan: Plan, num_listeners: int, model: RaterModel, scale: Scale = ACR) -> Power:
    """The chance that a study with `num_listeners` finds the difference, with the report's own test."""
    middle = (scale[0] + scale[1]) / 2
    studies = simulate(
        model,
        [middle + plan.difference / 2, middle - plan.difference / 2],
        num_studies=plan.num_studies,
        num_listeners=num_listeners,
        num_items=plan.num_items,
        items_per_listener=plan.items_per_listener,
        generator=np.random.default_rng([plan.seed, num_listeners]),
        scale=scale,
    )
    num_resamples = NUM_RESAMPLES * plan.comparisons
    found = sum(
        _p(one, index, num_resamples) <= ALPHA / plan.comparisons for index, one in enumerate(studies)
    )
    share = found / plan.num_studies
    return Power(num_listeners, share, float(np.sqrt(share * (1 - share) / plan.num_studies)))


def _p(study: np.ndarray, seed: int, num_resamples: int) -> float:
    """The report's p-value of a study [2, L, I]; 1 where the ratings are too alike for a test."""
    try:
        return two_way(study, np.array([1.0, -1.0]), seed=seed, num_resamples=num_resamples).p
    except NoIntervalError:
        return 1.0


def whole_numbers(text: str) -> list[int]:
    """The numbers of listeners in `text`, such as 10,20; raises `UserError` if they are none."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= 2 for word in words):
        raise UserError(f"--listeners '{text}' must be whole numbers of at least 2, such as 10,20,40")
    return [int(word) for word in words]


def _check(plan: Plan, scale: Scale) -> None:
    """Raise `UserError` for what no study can have."""
    if not 0 < plan.difference <= scale[1] - scale[0]:
        raise UserError(
            f"--difference is {plan.difference:g}: it must be above 0 and fit on the scale from {scale[0]:g}"
            f" to {scale[1]:g}"
        )
    if plan.num_items < 2:
        raise UserError(f"--items is {plan.num_items}: a study needs at least 2")
    if plan.items_per_listener is not None and not 1 <= plan.items_per_listener <= plan.num_items:
        raise UserError(
            f"--items-per-listener is {plan.items_per_listener}: it must be between 1 and --items"
            f" ({plan.num_items})"
        )


def print_power(plan: Plan, listeners: Sequence[int], test: Path | None = None) -> None:
    """Print a table of the power with each number of listeners, and the smallest number that is enough.

    Variances are those of `test` (TEST.yaml), a test that was held, or assumed ones. Raises `UserError` for
    sizes that no study can have, and if the test cannot say how much ratings vary.
    """
    model, scale = model_of_test(test) if test else (RaterModel(), ACR)
    _check(plan, scale)
    found = [power_of(plan, count, model, scale) for count in track(sorted(set(listeners)), "simulate")]
    table = Table()
    table.add_column("listeners", justify="right")
    table.add_column("power", justify="right")
    for one in found:
        table.add_row(str(one.num_listeners), f"{100 * one.power:.0f} % ± {100 * one.error:.0f}")
    console = Console()
    console.print(f"Chance of finding a difference of {plan.difference:g}", soft_wrap=True)
    console.print(table)
    console.print(_explained(plan, model, test), soft_wrap=True)
    enough = [one.num_listeners for one in found if one.power >= ENOUGH]
    if enough:
        console.print(
            f"{enough[0]} listeners are the first here with a power of at least {100 * ENOUGH:.0f} %."
        )
    else:
        console.print(
            f"None of these is enough for a power of {100 * ENOUGH:.0f} %. Where items differ much, more"
            " listeners help little: use more items.",
            soft_wrap=True,
        )


def _explained(plan: Plan, model: RaterModel, test: Path | None) -> str:
    """What the table assumes, in words."""
    each = plan.items_per_listener or plan.num_items
    origin = f"estimated from {test}" if test else "assumed; a pilot's are better: give its TEST.yaml"
    return (
        f"{plan.num_items} items, of which each listener rates {each} in both systems; p below"
        f" {ALPHA:g}{f' / {plan.comparisons}' if plan.comparisons > 1 else ''} for other listeners and items;"
        f" {plan.num_studies} studies. Standard deviations ({origin}): listeners {model.listener:.2f}, items"
        f" {model.item:.2f}, listeners between systems {model.listener_system:.2f}, items between systems"
        f" {model.item_system:.2f}, single ratings {model.rest:.2f}."
    )


def model_of_test(test: Path) -> tuple[RaterModel, Scale]:
    """Variances and scale of a listening test that has been held, without excluded answers.

    Raises `UserError` for A/B tests, which have no scale, and where the answers are too few.
    """
    definition = load_definition(test)
    if definition.method == "ab":
        raise UserError(f"{test} is an A/B test: power is computed for ratings on a scale (acr, mushra)")
    kept = screen(read_ratings(test), definition).kept
    systems = [system.name for system in definition.systems]
    try:
        models = [
            fitted_model(build_grid(kept, attribute.name, systems).values)
            for attribute in definition.attributes
        ]
    except NoIntervalError as error:
        raise UserError(f"{test} cannot say how much ratings vary: {error}") from error
    # The largest of the attributes' variances: what suffices for the hardest suffices for all.
    hardest = max(models, key=lambda one: one.listener_system**2 + one.item_system**2 + one.rest**2)
    return hardest, definition.scale
