"""Each rule by itself, and all together against random clickers."""

import pytest

from tokkata.eval.listening.exclusions import rules, screen
from tokkata.tests.eval.listening.made_ratings import (
    clicked_ratings,
    honest_ratings,
    made_definition,
    made_rating,
    mushra_ratings,
)


def attention(value, expected, **changes):
    return made_rating(
        role="attention", system="attention", attribute="attention", value=value, expected=expected, **changes
    )


def reasons(ratings, definition):
    return {one.listener: list(one.reasons) for one in screen(ratings, definition).excluded}


@pytest.mark.parametrize(("allowed", "excluded"), [(0, {"l0": ["1 of 2 attention trials wrong"]}), (1, {})])
def test_attention(allowed, excluded):
    definition = made_definition(["ours"], exclusions={"max_attention_failures": allowed})
    ratings = [made_rating(), attention(3.0, 3.0), attention(2.0, 4.0)]
    assert reasons(ratings, definition) == excluded


def test_repeats():
    definition = made_definition(["ours"], exclusions={"min_repeat_agreement": 0.5})
    ratings = [
        made_rating(item=f"i{item}", value=value, repeat=repeat)
        for item, values in enumerate([(1, 5), (5, 1), (3, 4)])
        for repeat, value in enumerate(values)
    ]
    assert reasons(ratings, definition) == {"l0": ["1 of 3 repeated items answered alike"]}
    assert reasons(ratings[2:], definition) == {}  # one of two is the share that is enough


def test_ratings_of_clips_that_were_hardly_heard_go_but_their_listener_stays():
    definition = made_definition(["ours"], exclusions={"min_listened_fraction": 0.9})
    heard, unheard = made_rating(item="i0"), made_rating(item="i1", listened_s=7.1)
    found = screen([heard, unheard], definition)
    assert (found.kept, found.unheard, found.excluded) == ([heard], [unheard], [])


@pytest.mark.parametrize(("num_low", "out"), [(1, False), (2, True)])
def test_mushra_listeners_must_find_the_reference(num_low, out):
    """More than 15 % of the trials: 1 of 10 is allowed, 2 of 10 are not."""
    definition = made_definition(["ours"], method="mushra")
    ratings = [
        made_rating(
            method="mushra",
            system="reference",
            role="reference",
            item=f"i{item}",
            value=89.0 if item < num_low else 90.0,
        )
        for item in range(10)
    ]
    ratings.append(made_rating(method="mushra", system="reconstructed", role="reference", value=20.0))
    expected = {"l0": [f"hidden reference rated below 90 in {num_low} of 10 trials"]} if out else {}
    assert reasons(ratings, definition) == expected


def test_careless_mushra_listeners_are_found():
    definition = made_definition(["ours", "baseline"], method="mushra")
    means = {"ours": 60, "baseline": 50, "reference": 95, "anchor_3500": 30}
    assert set(reasons(mushra_ratings(means, 10, 8, careless=3), definition)) == {"l00", "l01", "l02"}


def test_rules_are_said_in_words():
    assert len(rules(made_definition(["ours"]))) == 3
    assert "hidden reference below 90" in " ".join(rules(made_definition(["ours"], method="mushra")))
    without = made_definition(["ours"], attention_items=0, repeated_items=0)
    assert rules(without) == ["Ratings given after hearing less than 95 % of the clip."]


def test_random_clickers_are_caught_and_honest_listeners_are_not():
    """The short form of tests/benchmarks/coverage_listening.py."""
    definition = made_definition(["ours", "baseline"])
    means = {"ours": 3.6, "baseline": 3.1}
    gone = set()
    for seed in range(10):
        ratings = honest_ratings(means, 10, 10, seed=seed) + clicked_ratings(means, 10, 10, seed=seed)
        gone |= {(seed, one.listener) for one in screen(ratings, definition).excluded}
    clickers = sum(listener.startswith("clicker") for _, listener in gone)
    assert clickers >= 90
    assert len(gone) - clickers <= 3
