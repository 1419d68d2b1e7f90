"""Tests, corrections and effect sizes against scipy and published formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokkata.eval.listening.comparison import (
    Comparison,
    adjusted,
    cliffs_delta,
    compare,
    compare_preferences,
    holm,
    rank_biserial,
    rank_sum_p,
    rules_for,
    signed_rank_p,
)
from tokkata.eval.listening.grid import Grid, build_grid
from tokkata.eval.listening.intervals import two_way
from tokkata.eval.listening.simulation import RaterModel, simulate
from tokkata.tests.eval.listening.made_ratings import from_grid, made_rating


@pytest.mark.parametrize("count", [3, 8, 25, 49])
def test_signed_rank_p_is_scipys_exact_one(count):
    differences = np.random.default_rng(count).standard_normal(count) + 0.3
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert signed_rank_p(differences) == pytest.approx(expected, rel=1e-9)


def test_signed_rank_p_is_exact_with_ties_and_zeros():
    differences = np.round(2 * np.random.default_rng(0).standard_normal(11)) / 2
    moved = differences[differences != 0]
    assert len(np.unique(np.abs(moved))) < len(moved) < 11
    ranks = stats.rankdata(np.abs(moved))
    signs = 2 * (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1) - 1
    sums = np.abs(signs @ ranks)
    expected = np.mean(sums >= abs(np.sign(moved) @ ranks) - 1e-9)
    assert signed_rank_p(differences) == pytest.approx(expected)


def test_signed_rank_p_of_many_is_the_normal_one():
    differences = np.random.default_rng(0).standard_normal(300) + 0.1
    exact = stats.wilcoxon(differences, method="asymptotic").pvalue
    assert signed_rank_p(differences) == pytest.approx(exact)
    assert signed_rank_p(differences[:200]) == pytest.approx(
        stats.wilcoxon(differences[:200], method="asymptotic").pvalue, abs=0.002
    )


def test_nothing_to_tell_apart():
    assert signed_rank_p(np.zeros(9)) == 1.0
    assert rank_sum_p(np.full(5, 3.0), np.full(4, 3.0)) == 1.0
    assert rank_biserial(np.zeros(9)) == 0.0


def test_equal_means_of_different_sums_are_ties():
    third = np.array([0.1 + 0.2, 0.3, -0.3, 0.6])
    assert signed_rank_p(third) == signed_rank_p(np.array([3.0, 3.0, -3.0, 6.0]))


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] * (len(p_values) - rank) > alpha:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=12), st.lists(st.integers(1, 5), min_size=1, max_size=12)
)
def test_cliffs_delta_counts_pairs(a, b):
    expected = np.mean([np.sign(x - y) for x in a for y in b])
    assert cliffs_delta(np.array(a), np.array(b)) == pytest.approx(expected)
    assert cliffs_delta(np.array(b), np.array(a)) == pytest.approx(-expected)


def test_rank_biserial_is_kerbys_difference_of_shares():
    differences = np.array([3.0, 1.0, -2.0, 4.0, 0.0])
    assert rank_biserial(differences) == pytest.approx((3 + 1 + 4 - 2) / 10)
    assert rank_biserial(np.abs(differences)) == 1.0


def grid_of(values, systems=("ours", "baseline")):
    return build_grid(from_grid(values, list(systems)), "quality", list(systems))


def test_a_grid_holds_the_ratings_and_only_first_answers():
    values = np.random.default_rng(0).integers(1, 6, (2, 4, 5)).astype(float)
    values[0, 1, 2] = np.nan
    ratings = from_grid(values, ["ours", "baseline"])
    second = made_rating(**{**vars(ratings[0]), "repeat": 1, "value": 99.0})
    practice = made_rating(**{**vars(ratings[0]), "role": "practice", "value": 99.0})
    found = build_grid([*ratings, second, practice], "quality", ["ours", "baseline"])
    np.testing.assert_array_equal(found.values, values)


def test_a_comparison_reports_each_test_of_the_right_means():
    values = simulate(
        RaterModel(),
        [3.8, 3.0],
        num_studies=1,
        num_listeners=12,
        num_items=9,
        generator=np.random.default_rng(2),
    )[0]
    found = compare(grid_of(values), "quality", "ours", "baseline", rules_for(1, 8, 5))
    difference = values[0] - values[1]
    both = two_way(values, np.array([1.0, -1.0]), seed=5)
    assert found.difference == pytest.approx(difference.mean())
    assert (found.interval, found.p) == (both.interval, both.p)
    assert found.p_listeners == pytest.approx(signed_rank_p(difference.mean(axis=1)))
    assert found.p_items == pytest.approx(signed_rank_p(difference.mean(axis=0)))
    assert found.rank_biserial == pytest.approx(rank_biserial(difference.mean(axis=1)))
    assert found.num_listeners == 12
    backwards = compare(grid_of(values), "quality", "baseline", "ours", rules_for(1, 8, 5))
    assert backwards.difference == pytest.approx(-found.difference)
    assert backwards.p == found.p


def test_only_what_a_listener_rated_in_both_systems_is_compared():
    values = np.random.default_rng(0).integers(1, 6, (2, 9, 6)).astype(float)
    kept = values.copy()
    values[0, 0] = np.nan  # the first listener rated one system only, the second skipped an item
    values[1, 1, 2] = np.nan
    found = compare(grid_of(values), "quality", "ours", "baseline", rules_for(1, 8, 0))
    difference = (kept[0] - kept[1])[~np.isnan(values).any(axis=0)]
    assert found.num_listeners == 8
    assert found.difference == pytest.approx(difference.mean())


def test_systems_without_common_items_are_compared_by_two_samples_of_items():
    random = np.random.default_rng(0)
    values = np.full((2, 10, 12), np.nan)
    values[0, :, :6], values[1, :, 6:] = random.integers(2, 6, (10, 6)), random.integers(1, 5, (10, 6))
    found = compare(grid_of(values), "quality", "ours", "baseline", rules_for(1, 8, 0))
    first, second = values[0, :, :6].mean(axis=0), values[1, :, 6:].mean(axis=0)
    assert found.p_items == pytest.approx(stats.mannwhitneyu(first, second).pvalue)
    by_listener = np.nanmean(values[0], axis=1) - np.nanmean(values[1], axis=1)
    assert found.p_listeners == pytest.approx(signed_rank_p(by_listener))


def test_below_the_minimum_of_listeners_there_is_a_sentence_and_no_test():
    values = np.random.default_rng(0).integers(1, 6, (2, 5, 6)).astype(float)
    found = compare(grid_of(values), "quality", "ours", "baseline", rules_for(1, 8, 0))
    assert (found.interval, found.p, found.p_listeners, found.p_items) == (None, None, None, None)
    assert found.note == (
        "No interval and no test: 5 listeners, and the test was set up to give none below 8 (min_listeners)."
    )
    assert math.isfinite(found.difference)


def test_listeners_who_rated_one_system_each_are_not_compared():
    values = np.full((2, 10, 4), np.nan)
    values[0, :5], values[1, 5:] = 3.0, 4.0
    found = compare(
        Grid(["ours", "baseline"], "abcdefghij", "wxyz", values),
        "quality",
        "ours",
        "baseline",
        rules_for(1, 1, 0),
    )
    assert found.num_listeners == 0
    assert found.p is None


def test_preferences_are_tested_as_signs():
    values = np.sign(np.random.default_rng(0).standard_normal((12, 8)) + 0.8)
    found = compare_preferences(values, "quality", "ours", "baseline", rules_for(1, 8, 0))
    assert found.difference == pytest.approx(values.mean())
    assert found.p_listeners == pytest.approx(signed_rank_p(values.mean(axis=1)))
    assert found.cliffs_delta is None


def test_all_comparisons_are_one_family():
    def of(p):
        return Comparison("quality", "a", "b", 9, 0.5, 0.1, 0.1, p=p, p_listeners=p, p_items=p)

    found = adjusted([of(0.01), of(None), of(0.02), of(0.03)])
    assert [one.p_holm for one in found] == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.04),
        pytest.approx(0.04),
    ]
    assert [one.better for one in found] == ["a", None, "a", "a"]


def test_resamples_are_enough_for_any_family():
    rules = rules_for(135, 8, 0)
    assert 135 / (rules.num_resamples + 1) < 0.05 / 4


def test_holm_keeps_the_family_error_where_wilcoxon_alone_does_not():
    """The short form of tests/benchmarks/coverage_listening.py: four equal systems, whose items differ."""
    studies = simulate(
        RaterModel(listener_system=0.05, item_system=0.5),
        [3.2] * 4,
        num_studies=80,
        num_listeners=12,
        num_items=12,
        generator=np.random.default_rng(0),
    )
    two_way_errors = wilcoxon_errors = 0
    for seed, study in enumerate(studies):
        pairs = [study[[one, other]] for one in range(4) for other in range(one)]
        both = [two_way(pair, np.array([1.0, -1.0]), seed=seed, num_resamples=499).p for pair in pairs]
        listeners = [signed_rank_p((pair[0] - pair[1]).mean(axis=1)) for pair in pairs]
        two_way_errors += min(holm(both)) <= 0.05
        wilcoxon_errors += min(holm(listeners)) <= 0.05
    assert two_way_errors / 80 <= 0.10
    assert wilcoxon_errors / 80 > 0.5
