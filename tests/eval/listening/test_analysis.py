"""The whole analysis of simulated tests: what is counted, what is left out, what is refused."""

import numpy as np
import pytest

from tokkata.core.errors import UserError
from tokkata.eval.listening.analysis import analyse
from tokkata.eval.listening.intervals import naive_interval, two_way
from tokkata.tests.eval.listening.made_ratings import (
    clicked_ratings,
    honest_ratings,
    made_definition,
    made_rating,
    mushra_ratings,
    preference_counts,
    preference_ratings,
)

MEANS = {"ours": 3.8, "baseline": 3.0, "reference": 4.7, "anchor_3500": 1.6}
SYSTEMS = ["ours", "baseline"]


@pytest.fixture(scope="module")
def acr():
    """A test with 12 honest listeners and 4 random clickers."""
    ratings = honest_ratings(MEANS, 12, 10, seed=3) + clicked_ratings(MEANS, 4, 10, seed=5)
    return analyse(made_definition(SYSTEMS), ratings)


def test_opinions_are_means_with_both_intervals():
    ratings = honest_ratings(MEANS, 12, 10, seed=3, repeats=0)
    found = analyse(made_definition(SYSTEMS, repeated_items=0), ratings)
    assert [one.system for one in found.kept.opinions] == ["ours", "baseline", "reference", "anchor_3500"]
    values = np.array([one.value for one in ratings if one.system == "ours"]).reshape(12, 10)
    ours = found.kept.opinions[0]
    assert ours.mean == pytest.approx(values.mean())
    assert ours.interval == two_way(values, seed=1).interval
    assert ours.naive == naive_interval(values)
    assert ours.histogram == [int(np.sum(values == point)) for point in range(1, 6)]
    assert (ours.num_ratings, ours.num_listeners, ours.num_items) == (120, 12, 10)


def test_the_two_way_interval_is_the_wider_one(acr):
    for one in acr.kept.opinions[:2]:
        assert one.interval.high - one.interval.low > 1.5 * (one.naive.high - one.naive.low)


def test_exclusions_are_shown_with_and_without(acr):
    assert {one.listener for one in acr.excluded} == {f"clicker{number:02}" for number in range(4)}
    assert (acr.kept.num_listeners, acr.everyone.num_listeners) == (12, 16)
    kept, everyone = ({one.system: one.mean for one in part.opinions} for part in (acr.kept, acr.everyone))
    assert kept["reference"] > everyone["reference"]
    assert kept["anchor_3500"] < everyone["anchor_3500"]
    assert acr.kept.agreements[0].alpha > acr.everyone.agreements[0].alpha
    assert acr.kept.repeats.num_pairs == 24


def test_second_answers_do_not_count_twice():
    once = honest_ratings(MEANS, 9, 6, seed=0, repeats=0)
    again = [made_rating(**{**vars(once[0]), "repeat": 1, "value": 5.0})]
    definition = made_definition(SYSTEMS, exclusions={"min_repeat_agreement": 0.0})
    assert analyse(definition, once + again).kept.opinions == analyse(definition, once).kept.opinions


@pytest.mark.parametrize(("num", "refused"), [(7, True), (8, False)])
def test_below_the_minimum_of_listeners_no_interval_is_given(num, refused):
    found = analyse(made_definition(SYSTEMS, min_listeners=8), honest_ratings(MEANS, num, 8))
    assert all((one.interval is None) == refused for one in found.kept.opinions)
    assert all((one.naive is None) == refused for one in found.kept.opinions)
    assert all((one.p is None) == refused for one in found.kept.comparisons)
    assert all(
        one.note.startswith("No interval and no test: 7 listeners") == refused for one in found.kept.opinions
    )
    assert all(1 < one.mean < 5 for one in found.kept.opinions)


def test_all_excluded_is_a_result_and_no_crash():
    found = analyse(made_definition(SYSTEMS), clicked_ratings(MEANS, 2, 8, seed=1))
    assert len(found.excluded) == 2
    assert (found.kept.num_listeners, list(found.kept.opinions)) == (0, [])
    assert len(found.everyone.opinions) == 4


def test_nothing_but_practice_is_refused():
    with pytest.raises(UserError, match="no ratings yet besides practice"):
        analyse(made_definition(SYSTEMS), [made_rating(role="practice")])


def test_every_pair_of_systems_and_attribute_is_in_one_family():
    means = {"a": 3.9, "b": 3.0, "c": 2.9}
    ratings = [
        rating
        for seed, attribute in enumerate(("quality", "musicality"))
        for rating in honest_ratings(means, 9, 8, seed=seed, attribute=attribute)
    ]
    definition = made_definition(list(means), attributes=("quality", "musicality"))
    found = analyse(definition, ratings).kept.comparisons
    assert len(found) == 6
    smallest = min(found, key=lambda one: one.p)
    assert smallest.p_holm == pytest.approx(min(1.0, 6 * smallest.p))


def test_a_single_system_is_compared_with_the_recordings():
    means = {"ours": 3.0, "reference": 4.6}
    found = analyse(made_definition(["ours"]), honest_ratings(means, 9, 8)).kept.comparisons
    assert [(one.system, one.against, one.better) for one in found] == [("ours", "reference", "reference")]


def test_equal_ratings_have_a_sentence_in_place_of_an_interval():
    ratings = honest_ratings({"ours": 60.0, "baseline": 3.0}, 9, 8)
    ours = analyse(made_definition(SYSTEMS), ratings).kept.opinions[0]
    assert ours.mean == 5.0
    assert ours.interval is None
    assert ours.note == ("No interval: the ratings do not vary, so nothing says how far others would differ.")


def test_mushra_leaves_out_who_cannot_find_the_reference():
    means = {"ours": 62, "baseline": 45, "reference": 95, "anchor_3500": 25}
    found = analyse(made_definition(SYSTEMS, method="mushra"), mushra_ratings(means, 12, 8, careless=2))
    assert [one.listener for one in found.excluded] == ["l00", "l01"]
    assert found.scale == (0.0, 100.0)
    assert found.kept.comparisons[0].better == "ours"
    assert sum(found.kept.opinions[0].histogram) == 80


def test_preferences_have_strengths_pairs_and_tests():
    systems = ["ours", "baseline", "older"]
    counts = preference_counts([1.2, 0.0, -0.8], 0.5, 14, 8, np.random.default_rng(0))
    found = analyse(made_definition(systems, method="ab"), preference_ratings(systems, counts)).kept
    assert [one.system for one in found.preferences["quality"].strengths] == systems
    assert all(one.interval for one in found.preferences["quality"].strengths)
    first = found.pairs[0]
    assert (first.preferred, first.other, first.neither) == tuple(counts[:, :, 0].sum((0, 1)))
    assert found.comparisons[0].difference == pytest.approx((first.preferred - first.other) / 112)
    assert [one.better for one in found.comparisons] == ["ours", "ours", "baseline"]


def test_preferences_of_few_listeners_have_no_intervals():
    counts = preference_counts([1.0, 0.0], 0.5, 5, 8, np.random.default_rng(0))
    found = analyse(made_definition(SYSTEMS, method="ab"), preference_ratings(SYSTEMS, counts)).kept
    assert all(one.interval is None for one in found.preferences["quality"].strengths)
    assert found.preferences["quality"].note.startswith("No interval and no test: 5 listeners")
    assert found.comparisons[0].p is None


def test_computed_scores_are_correlated_with_opinions():
    means = {"a": 4.2, "b": 3.4, "c": 2.6, "d": 1.8}
    scores = {"fad": {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, "kad": {"a": 1.0, "b": 2.0}}
    found = analyse(made_definition(list(means)), honest_ratings(means, 9, 10), scores).correlations
    assert found[0].rho == pytest.approx(-1.0)
    assert found[1].rho is None
    assert "2 systems have" in found[1].note
