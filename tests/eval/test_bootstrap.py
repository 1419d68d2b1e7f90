import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokkata.eval.bootstrap import (
    Interval,
    centred_interval,
    draw_counts,
    group_clips,
    mean_interval,
    share_interval,
)


@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 5))
def test_clips_are_dealt_evenly(num_clips: int, max_groups: int, seed: int):
    groups = group_clips(num_clips, seed, max_groups)
    sizes = np.bincount(groups)
    assert len(sizes) == min(num_clips, max_groups)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(groups, group_clips(num_clips, seed, max_groups))


@given(st.integers(2, 50), st.integers(0, 5))
def test_resamples_are_as_large_as_the_set(num_groups: int, seed: int):
    counts = draw_counts(num_groups, seed, 40)
    assert counts.shape == (40, num_groups)
    assert (counts.sum(axis=1) == num_groups).all()
    assert (counts.max(axis=1) < num_groups).all()
    np.testing.assert_array_equal(counts, draw_counts(num_groups, seed, 40))


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=90)
    interval = mean_interval(values, seed=1)
    assert interval is not None
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.15)
    assert (interval.high + interval.low) / 2 == pytest.approx(values.mean(), abs=0.2 * half)


@pytest.mark.parametrize("num_clips", [10, 300])
def test_intervals_contain_the_mean_as_often_as_they_say(num_clips: int):
    """95 % nominal; fewer clips than thirty make a bootstrap a few percent too sure."""
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(300):
        interval = mean_interval(rng.normal(size=num_clips), seed=seed)
        assert interval is not None
        hits += interval.low <= 0.0 <= interval.high
    assert 0.88 <= hits / 300 <= 0.99


def test_bias_of_the_resamples_is_taken_out_and_ends_are_kept():
    resampled = 5.0 + np.random.default_rng(3).normal(size=4000)
    interval = centred_interval(1.0, resampled, 1000, lowest=0.0)
    assert interval is not None
    assert interval.low == 0.0
    assert interval.high == pytest.approx(1.0 + 1.96, abs=0.12)
    assert interval.level == 0.95


def test_one_clip_has_no_interval():
    assert centred_interval(1.0, np.array([1.0]), 1) is None
    assert mean_interval(np.array([1.0]), seed=0) is None
    assert mean_interval(np.array([]), seed=0) is None


def test_share_of_clips_is_wilsons():
    # Newcombe, Statist. Med. 17, 1998, table I: 81 of 263 and 0 of 20.
    interval = share_interval(81, 263)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    interval = share_interval(0, 20)
    assert interval == Interval(0.0, pytest.approx(0.1611, abs=1e-4))
    assert share_interval(0, 0) is None
