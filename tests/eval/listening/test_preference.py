"""Davidson's model against a general optimiser, and its intervals in simulated studies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tokkata.eval.listening.intervals import NoIntervalError
from tokkata.eval.listening.preference import (
    Answers,
    design,
    fit_davidson,
    fit_preferences,
    read_answers,
)
from tokkata.tests.eval.listening.made_ratings import preference_counts, preference_ratings

PAIRS = [(0, 1), (0, 2), (1, 2)]
SYSTEMS = ["ours", "baseline", "older"]


def answers_of(counts):
    return Answers(SYSTEMS, PAIRS, range(counts.shape[0]), range(counts.shape[1]), counts)


def maximum_by_scipy(counts):
    """Strengths, the first of which is 0, and log ν that maximise Davidson's likelihood as he wrote it."""

    def loss(parameters):
        strengths, tie = np.exp([0.0, *parameters[:-1]]), np.exp(parameters[-1])
        total = 0.0
        for (i, j), (won, lost, tied) in zip(PAIRS, counts, strict=True):
            middle = tie * np.sqrt(strengths[i] * strengths[j])
            both = strengths[i] + strengths[j] + middle
            total -= won * np.log(strengths[i] / both) + lost * np.log(strengths[j] / both)
            total -= tied * np.log(middle / both)
        return total

    return minimize(loss, np.zeros(3), method="BFGS", tol=1e-10).x


def test_the_fit_is_the_maximum_of_the_likelihood():
    counts = np.array([[30.0, 12.0, 9.0], [41.0, 5.0, 7.0], [22.0, 19.0, 15.0]])
    found = fit_davidson(counts[None], design(3, PAIRS), prior_sd=100.0).parameters[0]
    expected = maximum_by_scipy(counts)
    np.testing.assert_allclose(found[1:3] - found[0], expected[:2], atol=1e-3)
    assert found[3] == pytest.approx(expected[2], abs=1e-3)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 40), min_size=9, max_size=9))
def test_any_counts_have_a_finite_fit_whose_strengths_sum_to_zero(counts):
    found = fit_davidson(np.array(counts, dtype=float).reshape(1, 3, 3), design(3, PAIRS))
    assert np.isfinite(found.parameters).all()
    assert found.parameters[0, :3].sum() == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(axis=2), 1.0)


def test_many_fits_are_each_what_it_is_alone():
    counts = np.random.default_rng(0).integers(0, 30, (6, 3, 3)).astype(float)
    together = fit_davidson(counts, design(3, PAIRS)).parameters
    alone = [fit_davidson(one[None], design(3, PAIRS)).parameters[0] for one in counts]
    np.testing.assert_allclose(together, alone, atol=1e-7)


def test_a_fit_without_ties_reproduces_the_shares_of_two_systems():
    counts = np.array([[[30.0, 10.0, 0.0]]])
    found = fit_davidson(counts, design(2, [(0, 1)]), prior_sd=50.0)
    np.testing.assert_allclose(found.probabilities[0, 0], [0.75, 0.25, 0.0], atol=2e-3)


def test_ratings_are_read_whichever_system_is_named_first():
    counts = preference_counts([0.5, 0.0, -0.5], 0.7, 6, 5, np.random.default_rng(0))
    found = read_answers(preference_ratings(SYSTEMS, counts), "quality", SYSTEMS)
    np.testing.assert_array_equal(found.counts, counts)
    signs = counts[:, :, 1, 0] - counts[:, :, 1, 1]
    np.testing.assert_array_equal(found.of_pair(1), signs)


def test_stronger_systems_come_out_stronger():
    counts = preference_counts([1.0, 0.0, -1.0], 0.5, 20, 10, np.random.default_rng(0))
    found = fit_preferences(answers_of(counts), seed=0, num_resamples=99)
    values = [one.value for one in found.strengths]
    assert values == sorted(values, reverse=True)
    assert found.strengths[0].interval.low > found.strengths[2].interval.high
    weights = np.exp([values[0], values[2], np.log(found.tie) + (values[0] + values[2]) / 2])
    assert weights[0] / weights.sum() == pytest.approx(counts[:, :, 1, 0].mean(), abs=0.05)


def test_a_system_that_wins_always_has_an_end():
    counts = np.zeros((10, 6, 3, 3))
    counts[:, :, 0, 0] = counts[:, :, 1, 0] = 1
    counts[:, :, 2] = preference_counts([0, 0], 0.5, 10, 6, np.random.default_rng(0))[:, :, 0]
    found = fit_preferences(answers_of(counts), seed=0, num_resamples=99)
    assert 1.0 < found.strengths[0].value < 20.0


def test_no_strengths_without_comparisons_that_connect_the_systems():
    lonely = Answers(SYSTEMS, [(0, 1)], range(9), range(5), np.ones((9, 5, 1, 3)))
    with pytest.raises(NoIntervalError, match="not been compared"):
        fit_preferences(lonely, seed=0)


def test_one_listener_gives_strengths_without_intervals():
    counts = preference_counts([0.5, 0.0, -0.5], 0.7, 1, 8, np.random.default_rng(0))
    found = fit_preferences(answers_of(counts), seed=0)
    assert found.note == "No interval: it needs at least two listeners and two items."
    assert all(one.interval is None for one in found.strengths)


def test_intervals_of_strengths_cover():
    """The short form of tests/benchmarks/coverage_listening.py."""
    model = ([0.5, 0.0, -0.5], 0.7)
    sds = {"listener_sd": 0.5, "item_sd": 0.5}
    crowd = preference_counts(*model, 400, 400, np.random.default_rng(0), **sds).sum((0, 1))
    truth = fit_davidson(crowd[None], design(3, PAIRS)).parameters[0, :3]
    hits = 0
    for seed in range(60):
        counts = preference_counts(*model, 12, 10, np.random.default_rng(seed), **sds)
        found = fit_preferences(answers_of(counts), seed=seed, num_resamples=149)
        hits += sum(
            one.interval.low <= value <= one.interval.high
            for one, value in zip(found.strengths, truth, strict=True)
        )
    assert 0.89 <= hits / 180 <= 0.99
