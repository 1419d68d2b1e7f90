"""Intervals of a mean: formulas against plain loops, and coverage in simulated studies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.eval.bootstrap import Interval
from tokkata.eval.listening.intervals import (
    LEAST_SHARE,
    NoIntervalError,
    _Cells,
    contrast_of,
    draw_counts,
    naive_interval,
    two_way,
    variance_components,
    within_scale,
)
from tokkata.eval.listening.simulation import RaterModel, expected_rating, fitted_model, simulate

DIFFERENCE = np.array([1.0, -1.0])


def ratings(seed=0, systems=2, listeners=7, items=6, missing=0.3):
    random = np.random.default_rng(seed)
    values = random.integers(1, 6, (systems, listeners, items)).astype(float)
    values[random.random(values.shape) < missing] = np.nan
    return values


def estimate_by_loops(values, contrast, listeners, items):
    """The estimate and its variance under weights, rating by rating, as the papers write them."""
    means, counts = [], []
    for system in values:
        weights = [
            (listeners[x] * items[y], system[x, y])
            for x in range(len(listeners))
            for y in range(len(items))
            if not np.isnan(system[x, y])
        ]
        counts.append(sum(weight for weight, _ in weights))
        means.append(sum(weight * value for weight, value in weights) / counts[-1])
    shares = np.zeros(values.shape[1:])
    for sign, system, mean, count in zip(contrast, values, means, counts, strict=True):
        shares += np.where(np.isnan(system), 0.0, sign * (system - mean) / count)
    between_listeners = sum(
        weight * sum(items[y] * shares[x, y] for y in range(len(items))) ** 2
        for x, weight in enumerate(listeners)
    )
    between_items = sum(
        weight * sum(listeners[x] * shares[x, y] for x in range(len(listeners))) ** 2
        for y, weight in enumerate(items)
    )
    both = sum(
        listeners[x] * items[y] * shares[x, y] ** 2 for x in range(len(listeners)) for y in range(len(items))
    )
    between_listeners *= len(listeners) / (len(listeners) - 1)
    between_items *= len(items) / (len(items) - 1)
    variance = max(between_listeners + between_items - both, between_listeners, between_items)
    return float(np.dot(contrast, means)), variance


@pytest.mark.parametrize("contrast", [[1.0], [1.0, -1.0], [0.5, 0.5]])
def test_matrices_say_what_loops_say(contrast):
    values = ratings(systems=len(contrast))
    random = np.random.default_rng(1)
    listeners, items = draw_counts(7, random, 20), draw_counts(6, random, 20)
    centre = contrast_of(values, np.array(contrast))
    estimates, variances = _Cells.of(values).estimate(np.array(contrast), listeners, items)
    for index in range(20):
        estimate, variance = estimate_by_loops(values, contrast, listeners[index], items[index])
        assert estimates[index] + centre == pytest.approx(estimate)
        assert variances[index] == pytest.approx(variance)


def test_the_interval_is_where_the_ratios_have_their_quantile():
    values = ratings(systems=1, missing=0.0)[0]
    found = two_way(values, seed=3, num_resamples=200)
    random = np.random.default_rng(3)
    listeners, items = draw_counts(7, random, 200), draw_counts(6, random, 200)
    mean, variance = estimate_by_loops(values[None], [1.0], np.ones(7), np.ones(6))
    ratios = []
    for index in range(200):
        other, spread = estimate_by_loops(values[None], [1.0], listeners[index], items[index])
        ratios.append(abs(other - mean) / np.sqrt(max(spread, LEAST_SHARE * variance)))
    half = np.quantile(ratios, 0.95, method="higher") * np.sqrt(variance)
    assert found.estimate == pytest.approx(mean)
    assert (found.interval.low, found.interval.high) == pytest.approx((mean - half, mean + half))
    assert found.p == pytest.approx((1 + np.sum(ratios >= mean / np.sqrt(variance))) / 201)


def test_a_difference_of_paired_ratings_is_the_mean_of_the_differences():
    values = ratings(missing=0.0)
    pair = two_way(values, DIFFERENCE, seed=0, num_resamples=300)
    single = two_way(values[0] - values[1], seed=0, num_resamples=300)
    assert pair.estimate == pytest.approx(single.estimate)
    assert pair.interval.low == pytest.approx(single.interval.low)
    assert pair.p == single.p


def test_systems_without_common_items_can_be_compared():
    values = np.full((2, 9, 12), np.nan)
    random = np.random.default_rng(0)
    values[0, :, :6] = random.integers(3, 6, (9, 6))
    values[1, :, 6:] = random.integers(1, 4, (9, 6))
    found = two_way(values, DIFFERENCE, seed=0)
    assert found.estimate == pytest.approx(np.nanmean(values[0]) - np.nanmean(values[1]))
    assert found.interval.low > 0
    assert found.p < 0.05


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(0.1, 20))
def test_a_change_of_scale_changes_the_interval_likewise(seed, shift, factor):
    values = ratings(seed, systems=1)[0]
    one = two_way(values, seed=0, num_resamples=99)
    other = two_way(shift + factor * values, seed=0, num_resamples=99)
    assert other.estimate == pytest.approx(shift + factor * one.estimate)
    assert other.interval.low == pytest.approx(shift + factor * one.interval.low, rel=1e-6, abs=1e-6)
    assert other.interval.high == pytest.approx(shift + factor * one.interval.high, rel=1e-6, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_p_and_interval_agree(seed):
    found = two_way(ratings(seed), DIFFERENCE, seed=seed, num_resamples=199)
    inside = found.interval.low <= 0 <= found.interval.high
    assert inside == (found.p > 0.05) or found.p == pytest.approx(0.05, abs=2 / 200)


def test_listeners_and_items_who_rated_nothing_do_not_count():
    values = ratings(systems=1)
    wider = np.full((1, 9, 8), np.nan)
    wider[:, 1:8, 1:7] = values
    assert two_way(wider, seed=0) == two_way(values, seed=0)


def test_naive_interval_is_the_textbooks():
    values = np.array([[1.0, 2.0], [3.0, np.nan]])
    found = naive_interval(values)
    assert found.low == pytest.approx(2 - 1.959964 / np.sqrt(3), abs=1e-6)
    assert found.high == pytest.approx(2 + 1.959964 / np.sqrt(3), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.ones((5, 1)), "at least two listeners and two items"),
        (np.ones((1, 5)), "at least two listeners and two items"),
        (np.full((5, 5), 4.0), "do not vary"),
    ],
)
def test_no_interval_without_variation(values, reason):
    with pytest.raises(NoIntervalError, match=reason):
        two_way(values, seed=0)


def test_no_naive_interval_of_one_rating():
    with pytest.raises(NoIntervalError, match="two ratings"):
        naive_interval(np.array([[3.0, np.nan]]))


def test_strict_listeners_do_not_make_the_interval_endless(monkeypatch):
    values = np.full((14, 8), 96.0) + np.random.default_rng(0).integers(-3, 4, (14, 8))
    values[:2] = 40.0
    found = two_way(values, seed=0).interval
    assert found.high - found.low < 60
    monkeypatch.setattr("tokkata.eval.listening.intervals.LEAST_SHARE", 0.0)
    without = two_way(values, seed=0).interval
    assert without.high - without.low > 100


def test_intervals_stay_on_the_scale():
    assert within_scale(Interval(0.2, 5.3), 1.0, 5.0) == Interval(1.0, 5.0)
    assert within_scale(Interval(2.0, 3.0), 1.0, 5.0) == Interval(2.0, 3.0)


def test_variance_components_are_those_of_an_analysis_of_variance():
    """In a complete design the moments are the textbook's mean squares."""
    values = np.random.default_rng(0).standard_normal((9, 7)) + np.arange(9)[:, None]
    listeners, items, mean = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    rest = np.sum((values - listeners - items + mean) ** 2) / (8 * 6)
    found = variance_components(values)
    assert found.rest == pytest.approx(rest)
    assert found.listener == pytest.approx(values.mean(1).var(ddof=1) - rest / 7)
    assert found.item == pytest.approx(max(0.0, values.mean(0).var(ddof=1) - rest / 9))


def test_variance_components_of_an_incomplete_design_are_right_on_average():
    model = RaterModel(listener=0.5, item=0.4, listener_system=0.0, item_system=0.0, rest=0.8)
    studies = simulate(
        model,
        [50.0],
        num_studies=300,
        num_listeners=16,
        num_items=12,
        items_per_listener=5,
        generator=np.random.default_rng(0),
        scale=(0.0, 100.0),
    )
    found = [variance_components(study[0]) for study in studies]
    assert np.mean([one.listener for one in found]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([one.item for one in found]) == pytest.approx(0.16, abs=0.03)
    assert np.mean([one.rest for one in found]) == pytest.approx(0.64 + 1 / 12, abs=0.03)


def test_no_variance_components_where_everyone_rated_one_item():
    values = np.full((4, 4), np.nan)
    np.fill_diagonal(values, [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(NoIntervalError, match="several items"):
        variance_components(values)


def test_a_model_is_found_again_in_its_own_ratings():
    model = RaterModel(listener=0.5, item=0.3, listener_system=0.3, item_system=0.4, rest=0.7)
    studies = simulate(
        model,
        [50.0, 51.0, 52.0],
        num_studies=100,
        num_listeners=20,
        num_items=20,
        generator=np.random.default_rng(0),
        scale=(0.0, 100.0),
    )
    models = [fitted_model(study) for study in studies]
    for name, value in vars(model).items():
        variances = [getattr(one, name) ** 2 for one in models]
        assert np.sqrt(np.mean(variances)) == pytest.approx(value, abs=0.05), name


def test_the_expected_rating_is_the_mean_of_many():
    random = np.random.default_rng(0)
    for mean, sd in ((3.2, 0.9), (4.6, 0.7), (1.2, 1.5)):
        many = np.clip(np.rint(mean + sd * random.standard_normal(400_000)), 1, 5)
        assert expected_rating(mean, sd) == pytest.approx(many.mean(), abs=0.005)


@pytest.mark.parametrize(("listeners", "items"), [(10, 20), (30, 10)])
def test_the_interval_covers_and_the_naive_one_does_not(listeners, items):
    """The short form of tests/benchmarks/coverage_listening.py; seeds are fixed, so it cannot flake."""
    model = RaterModel()
    truth = expected_rating(3.4, model.total)
    studies = simulate(
        model,
        [3.4],
        num_studies=150,
        num_listeners=listeners,
        num_items=items,
        generator=np.random.default_rng(0),
    )
    hits = naive_hits = 0
    for seed, study in enumerate(studies):
        found = two_way(study, seed=seed, num_resamples=299).interval
        naive = naive_interval(study)
        hits += found.low <= truth <= found.high
        naive_hits += naive.low <= truth <= naive.high
    assert 0.90 <= hits / 150 <= 0.99
    assert naive_hits / 150 < 0.75
