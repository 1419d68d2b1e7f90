"""Do the report's 95 % intervals contain the truth in 95 % of studies, and do its tests err in 5 %?

    python tests/benchmarks/coverage_listening.py [--studies 500] [--resamples 1000] [--design 'few items']

Studies of simulated listeners are analysed as the report does it. The truth is known: the mean of a rating
over all listeners and all items, after rounding to the scale. Seeds are fixed, so every run prints the same.
"""

import argparse
import math
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from tokkata.core.progress import track
from tokkata.eval.bootstrap import Interval
from tokkata.eval.listening.comparison import holm, signed_rank_p
from tokkata.eval.listening.exclusions import screen
from tokkata.eval.listening.intervals import naive_interval, two_way
from tokkata.eval.listening.preference import Answers, design, fit_davidson, fit_preferences
from tokkata.eval.listening.simulation import RaterModel, expected_rating, simulate
from tokkata.tests.eval.listening.made_ratings import (
    clicked_ratings,
    honest_ratings,
    made_definition,
    preference_counts,
)

ALPHA = 0.05
USUAL = RaterModel()
LAPSES = 0.02
"""Share of attention trials in which an honest listener clicks anywhere."""


@dataclass(frozen=True)
class Design:
    """What a study looks like."""

    name: str
    num_listeners: int
    num_items: int
    model: RaterModel = USUAL
    mean: float = 3.2
    items_per_listener: int | None = None


DESIGNS = (
    Design("few of both", 10, 10),
    Design("few listeners", 10, 30),
    Design("few items", 40, 10),
    Design("middling", 20, 20),
    Design("many of both", 40, 30),
    Design("near the top of the scale", 20, 20, mean=4.4),
    Design("listeners differ, items do not", 10, 30, RaterModel(0.7, 0.1, 0.1, 0.1, 0.6)),
    Design("items differ, listeners do not", 20, 12, RaterModel(0.1, 0.5, 0.1, 0.5, 0.7)),
    Design("only chance", 20, 20, RaterModel(0.1, 0.05, 0.05, 0.05, 0.9)),
    Design("each listener rates half", 20, 20, items_per_listener=10),
    Design("each listener rates a fifth", 40, 30, items_per_listener=6),
)

EFFECTS = (
    ("both vary", USUAL),
    ("listeners' tastes vary", RaterModel(listener_system=0.5, item_system=0.05)),
    ("items vary", RaterModel(listener_system=0.05, item_system=0.5)),
)


def covers(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def studies_of(made: Design, means, num_studies):
    return simulate(
        made.model,
        means,
        num_studies=num_studies,
        num_listeners=made.num_listeners,
        num_items=made.num_items,
        items_per_listener=made.items_per_listener,
        generator=np.random.default_rng([made.num_listeners, made.num_items, len(made.name)]),
    )


def percentile_interval(values, seed, num_resamples):
    """The plain percentile interval of the same two-way resamples: what the report does not use."""
    rated = ~np.isnan(values)
    filled = np.where(rated, values, 0.0)
    generator = np.random.default_rng(seed)
    listeners, items = (
        generator.multinomial(count, np.full(count, 1 / count), num_resamples).astype(float)
        for count in values.shape
    )
    counts = ((listeners @ rated.astype(float)) * items).sum(1)
    drawn = counts > 0
    means = ((listeners @ filled) * items).sum(1)[drawn] / counts[drawn]
    return Interval(*np.quantile(means, [0.025, 0.975]))


def coverage(made: Design, num_studies, num_resamples):
    """Shares of studies in which each interval contains the truth, and how wide each is."""
    single = expected_rating(made.mean, made.model.total)
    other = expected_rating(made.mean - 0.4, made.model.total)
    found = {name: [0, 0.0] for name in ("mean", "percentile", "naive", "difference")}
    contrast = np.array([1.0, -1.0])
    for seed, study in enumerate(studies_of(made, [made.mean, made.mean - 0.4], num_studies)):
        for name, truth, interval in (
            ("mean", single, two_way(study[0], seed=seed, num_resamples=num_resamples).interval),
            ("percentile", single, percentile_interval(study[0], seed, num_resamples)),
            ("naive", single, naive_interval(study[0])),
            (
                "difference",
                single - other,
                two_way(study, contrast, seed=seed, num_resamples=num_resamples).interval,
            ),
        ):
            found[name][0] += covers(interval, truth)
            found[name][1] += interval.high - interval.low
    return {name: (hits / num_studies, width / num_studies) for name, (hits, width) in found.items()}


def family_error(model: RaterModel, num_studies, num_resamples, num_systems=4, size=16):
    """Shares of studies of equal systems in which any pair is declared different, with Holm and without."""
    studies = simulate(
        model,
        [3.2] * num_systems,
        num_studies=num_studies,
        num_listeners=size,
        num_items=size,
        generator=np.random.default_rng(num_systems),
    )
    contrast = np.array([1.0, -1.0])
    any_false = dict.fromkeys(("two-way", "two-way, Holm", "Wilcoxon, Holm"), 0)
    for seed, study in enumerate(studies):
        both, listeners = [], []
        for one in range(num_systems):
            for other in range(one):
                pair = study[[one, other]]
                both.append(two_way(pair, contrast, seed=seed, num_resamples=num_resamples).p)
                listeners.append(signed_rank_p((pair[0] - pair[1]).mean(axis=1)))
        any_false["two-way"] += min(both) <= ALPHA
        any_false["two-way, Holm"] += min(holm(both)) <= ALPHA
        any_false["Wilcoxon, Holm"] += min(holm(listeners)) <= ALPHA
    return {name: count / num_studies for name, count in any_false.items()}


def preference_coverage(num_listeners, num_items, num_studies, num_resamples):
    """Shares of studies in which the interval of each Bradley–Terry strength contains the truth."""
    strengths, tie, listener_sd, item_sd = [0.5, 0.0, -0.5], 0.7, 0.5, 0.5
    pairs = [(0, 1), (0, 2), (1, 2)]
    generator = np.random.default_rng(7)
    crowd = sum(
        preference_counts(strengths, tie, 300, 300, generator, listener_sd, item_sd).sum((0, 1))
        for _ in range(10)
    )
    # The model without listeners and items, fitted to everybody: what a strength means.
    truth = fit_davidson(crowd[None], design(3, pairs)).parameters[0, :3]
    hits = np.zeros(3)
    for seed in range(num_studies):
        counts = preference_counts(
            strengths, tie, num_listeners, num_items, np.random.default_rng(seed), listener_sd, item_sd
        )
        answers = Answers("abc", pairs, range(num_listeners), range(num_items), counts)
        fitted = fit_preferences(answers, seed=seed, num_resamples=num_resamples)
        hits += [covers(one.interval, value) for one, value in zip(fitted.strengths, truth, strict=True)]
    return hits / num_studies


def exclusions(num_studies):
    """Shares of random clickers, and of honest listeners with lapses, that the default rules exclude."""
    definition = made_definition(["ours", "baseline"])
    means = {"ours": 3.6, "baseline": 3.1}
    caught = wrong = 0
    for seed in range(num_studies):
        honest = honest_ratings(means, 10, 10, seed=seed, lapses=LAPSES)
        ratings = honest + clicked_ratings(means, 10, 10, seed=seed)
        gone = {one.listener for one in screen(ratings, definition).excluded}
        caught += sum(name.startswith("clicker") for name in gone)
        wrong += sum(not name.startswith("clicker") for name in gone)
    return caught / (10 * num_studies), wrong / (10 * num_studies)


def percent(share, num):
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / num):.1f}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--design", help="only the coverage of means in the design of this name")
    arguments = parser.parse_args()
    num, resamples = arguments.studies, arguments.resamples
    console = Console(width=150)
    table = Table(
        title=f"Percent of {num} studies whose 95 % interval contains the truth (± s.e.; mean width)"
    )
    for column in ("study", "listeners × items", "mean", "difference", "percentile bootstrap", "naive"):
        table.add_column(column, justify="left" if column == "study" else "right")
    for made in track([one for one in DESIGNS if arguments.design in (None, one.name)], "coverage"):
        found = coverage(made, num, resamples)
        cells = [
            f"{percent(found[name][0], num)} ({found[name][1]:.2f})"
            for name in ("mean", "difference", "percentile", "naive")
        ]
        table.add_row(made.name, f"{made.num_listeners} × {made.num_items}", *cells)
    console.print(table)
    if arguments.design:
        return
    table = Table(title=f"Percent of {num} studies of four equal systems with any false finding (± s.e.)")
    for column in ("what varies", "two-way, Holm", "two-way, uncorrected", "Wilcoxon over listeners, Holm"):
        table.add_column(column)
    for name, model in track(EFFECTS, "family error"):
        found = family_error(model, num, resamples)
        columns = ("two-way, Holm", "two-way", "Wilcoxon, Holm")
        table.add_row(name, *(percent(found[column], num) for column in columns))
    console.print(table)
    table = Table(title=f"Percent of {num} A/B studies whose interval contains the Bradley–Terry strength")
    for column in ("listeners × items", "first", "second", "third"):
        table.add_column(column)
    for listeners, items in track([(10, 10), (20, 12), (10, 30)], "preferences"):
        hits = preference_coverage(listeners, items, num, resamples)
        table.add_row(f"{listeners} × {items}", *(percent(hit, num) for hit in hits))
    console.print(table)
    caught, wrong = exclusions(num)
    console.print(
        f"Default exclusion rules, {10 * num} listeners of each kind: {100 * caught:.1f} % of random clickers"
        f" are caught, {100 * wrong:.1f} % of honest listeners (who click anywhere in {100 * LAPSES:g} % of"
        " attention trials) are excluded"
    )


if __name__ == "__main__":
    main()
