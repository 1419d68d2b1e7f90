"""Agreement against published examples, and consistency counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.eval.listening.agreement import krippendorff_alpha, repeat_consistency, repeat_differences
from tokkata.tests.eval.listening.made_ratings import made_rating

NONE = float("nan")
KRIPPENDORFF_2011 = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
)
"""Four observers, twelve units, from section D of Krippendorff 2011: ordinal alpha is .815 there."""


def alpha_by_definition(values):
    """Krippendorff's formulas pair by pair, with ordinal distances summed over the ranks in between."""
    units = [column[~np.isnan(column)] for column in values.T]
    units = [unit for unit in units if len(unit) >= 2]
    pooled = np.concatenate(units)

    def distance(a, b):
        low, high = min(a, b), max(a, b)
        between = np.sum((pooled >= low) & (pooled <= high))
        return (between - (np.sum(pooled == low) + np.sum(pooled == high)) / 2) ** 2

    observed = sum(
        distance(a, b) / (len(unit) - 1)
        for unit in units
        for i, a in enumerate(unit)
        for j, b in enumerate(unit)
        if i != j
    )
    expected = sum(distance(a, b) for a in pooled for b in pooled) / (len(pooled) - 1)
    return 1 - observed / expected


def test_alpha_of_the_published_example():
    assert krippendorff_alpha(KRIPPENDORFF_2011) == pytest.approx(0.815, abs=0.0005)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_alpha_by_matrices_is_alpha_by_definition(seed):
    random = np.random.default_rng(seed)
    values = random.integers(1, 6, (5, 8)).astype(float)
    values[random.random(values.shape) < 0.3] = NONE
    found = krippendorff_alpha(values)
    if found is not None:
        assert found == pytest.approx(alpha_by_definition(values))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_alpha_depends_on_order_alone(seed):
    values = np.random.default_rng(seed).integers(1, 6, (4, 9)).astype(float)
    found = krippendorff_alpha(values)
    assert krippendorff_alpha(np.exp(values)) == pytest.approx(found)
    assert krippendorff_alpha(-values) == pytest.approx(found)
    assert krippendorff_alpha(values[::-1]) == pytest.approx(found)


def test_alpha_at_its_ends():
    agreed = np.tile(np.array([1.0, 2, 3, 4, 5]), (6, 1))
    assert krippendorff_alpha(agreed) == pytest.approx(1.0)
    chance = np.random.default_rng(0).integers(1, 6, (30, 200)).astype(float)
    assert krippendorff_alpha(chance) == pytest.approx(0.0, abs=0.02)
    assert krippendorff_alpha(np.full((3, 4), 2.0)) is None
    assert krippendorff_alpha(np.array([[1.0, NONE], [NONE, 2.0]])) is None


def answers(*pairs, **changes):
    """First and second answers to as many questions."""
    return [
        made_rating(item=f"i{number}", value=value, repeat=repeat, **changes)
        for number, pair in enumerate(pairs)
        for repeat, value in enumerate(pair)
    ]


def test_consistency_counts_equal_and_alike():
    found = repeat_consistency(answers((3, 3), (3, 4), (2, 5)), "acr")
    assert found.num_pairs == 3
    assert found.equal == pytest.approx(1 / 3)
    assert found.alike == pytest.approx(2 / 3)
    assert found.mean_difference == pytest.approx(4 / 3)


def test_a_second_answer_without_a_first_is_none():
    assert repeat_consistency([made_rating(repeat=1)], "acr") is None
    practice = answers((3, 3), role="practice")
    assert repeat_consistency(practice, "acr") is None


def test_the_same_preference_counts_whichever_system_is_named_first():
    first = made_rating(method="ab", system="ours", against="other", value=1.0)
    again = made_rating(method="ab", system="other", against="ours", value=0.0, repeat=1)
    assert repeat_differences([first, again]) == {"l0": [0.0]}
    opposite = made_rating(method="ab", system="other", against="ours", value=1.0, repeat=1)
    assert repeat_differences([first, opposite]) == {"l0": [1.0]}
