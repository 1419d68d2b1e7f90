"""Rows of short clips: all fit, all come up, and a batch is a pure function of (seed, step)."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.packed_sampler import PackedSampler

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=30)
ROWS = st.integers(1, 40)
GAPS = st.integers(0, 5)
SEEDS = st.integers(-(2**40), 2**70)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, ROWS, GAPS, SEEDS, st.integers(0, 3))
def test_a_pass_has_each_short_clip_once_and_the_others_as_often_as_they_are_long(
    lengths, row_length, gap, seed, epoch
):
    sampler = PackedSampler(lengths, row_length, gap, seed)
    drawn = sampler.draw(epoch, sampler.num_rows, range(sampler.num_rows))
    expected = {clip: max(1, length // row_length) for clip, length in enumerate(lengths)}
    assert Counter(crop.clip for row in drawn for crop in row) == expected
    for row in drawn:
        assert 1 <= len(row) <= sampler.most_clips
        if len(row) > 1 or lengths[row[0].clip] < row_length:
            assert all(crop.start == 0 for crop in row)
            assert sum(lengths[crop.clip] for crop in row) + gap * (len(row) - 1) <= row_length
        else:
            assert 0 <= row[0].start <= lengths[row[0].clip] - row_length


@settings(max_examples=50, deadline=None)
@given(LENGTHS, ROWS, GAPS, SEEDS, st.integers(1, 12), st.data())
def test_any_order_and_any_partition_give_the_same_batches(lengths, row_length, gap, seed, batch_size, data):
    steps = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    whole = {
        step: PackedSampler(lengths, row_length, gap, seed).draw(step, batch_size, range(batch_size))
        for step in steps
    }
    sampler = PackedSampler(lengths, row_length, gap, seed)
    for step in data.draw(st.permutations(steps)):
        bounds = [0, *sorted(data.draw(st.lists(st.integers(0, batch_size), max_size=3))), batch_size]
        parts = [range(a, b) for a, b in pairwise(bounds)]
        drawn = {rows: sampler.draw(step, batch_size, rows) for rows in data.draw(st.permutations(parts))}
        assert [row for rows in parts for row in drawn[rows]] == whole[step]


@settings(max_examples=50, deadline=None)
@given(LENGTHS, ROWS, GAPS, SEEDS)
def test_no_two_rows_are_each_less_than_half_full(lengths, row_length, gap, seed):
    short = PackedSampler(lengths, row_length, gap, seed).packed
    used = [sum(lengths[clip] + gap for clip in row) for row in short]
    assert sum(2 * length <= row_length for length in used) <= 1


def test_a_clip_goes_where_it_leaves_least_room():
    rows = PackedSampler([6, 3, 4, 2, 4], 10, 0, 0).packed
    assert sorted(sum([6, 3, 4, 2, 4][clip] for clip in row) for row in rows) == [9, 10]


def test_passes_and_seeds_differ():
    def clips(seed, epoch):
        sampler = PackedSampler([9] * 30, 10, 1, seed)
        return [row[0].clip for row in sampler.draw(epoch, 30, range(30))]

    orders = [clips(seed, epoch) for seed in (0, 1, -1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_crops_of_long_clips_begin_anywhere():
    sampler = PackedSampler([14], 10, 3, 0)
    starts = Counter(row[0].start for row in sampler.draw(0, 500, range(500)))
    assert set(starts) == {0, 1, 2, 3, 4}
    assert min(starts.values()) > 60


def test_many_clips_are_packed_well():
    lengths = np.random.default_rng(0).integers(20, 400, size=20_000)
    sampler = PackedSampler(lengths, 500, 7, 0)
    assert lengths.sum() / (sampler.num_rows * 500) > 0.9


def test_no_clips():
    with pytest.raises(ValueError, match="no clips to sample from"):
        PackedSampler([], 4, 0, 0)
