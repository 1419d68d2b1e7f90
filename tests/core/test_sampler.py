"""Crops are a pure function of (seed, step): any process can draw any rows, in any order."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.sampler import Chunk, ConsecutiveSampler, CropSampler

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=12)
SEEDS = st.integers(-(2**40), 2**70)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 20), SEEDS, st.integers(1, 12), st.data())
def test_any_order_and_any_partition_give_the_same_batches(lengths, crop, seed, batch_size, data):
    steps = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    whole = {
        step: CropSampler(lengths, crop, seed).draw(step, batch_size, range(batch_size)) for step in steps
    }
    sampler = CropSampler(lengths, crop, seed)
    for step in data.draw(st.permutations(steps)):
        cuts = sorted(data.draw(st.lists(st.integers(0, batch_size), max_size=3)))
        bounds = [0, *cuts, batch_size]
        parts = [range(a, b) for a, b in pairwise(bounds)]
        drawn = {rows: sampler.draw(step, batch_size, rows) for rows in data.draw(st.permutations(parts))}
        assert [crop for rows in parts for crop in drawn[rows]] == whole[step]


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 20), SEEDS, st.integers(1, 7))
def test_a_batch_is_a_window_of_one_stream(lengths, crop, seed, batch_size):
    sampler = CropSampler(lengths, crop, seed)
    stream = sampler.draw(0, 5 * batch_size, range(5 * batch_size))
    assert [crop for step in range(5) for crop in sampler.draw(step, batch_size, range(batch_size))] == stream


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 20), SEEDS, st.integers(0, 3))
def test_each_pass_takes_each_clip_as_often_as_it_is_long(lengths, crop, seed, epoch):
    expected = {clip: max(1, length // crop) for clip, length in enumerate(lengths)}
    size = sum(expected.values())
    drawn = CropSampler(lengths, crop, seed).draw(epoch, size, range(size))
    assert Counter(crop.clip for crop in drawn) == expected


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 20), SEEDS)
def test_crops_lie_within_their_clips(lengths, crop, seed):
    for found in CropSampler(lengths, crop, seed).draw(0, 60, range(60)):
        assert 0 <= found.start <= max(0, lengths[found.clip] - crop)


def test_every_start_comes_up():
    starts = Counter(found.start for found in CropSampler([14], 10, 0).draw(0, 500, range(500)))
    assert set(starts) == {0, 1, 2, 3, 4}
    assert min(starts.values()) > 60


def test_passes_and_seeds_differ():
    lengths = [10] * 30

    def clips(seed, epoch):
        return [found.clip for found in CropSampler(lengths, 10, seed).draw(epoch, 30, range(30))]

    orders = [clips(seed, epoch) for seed in (0, 1, -1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_arrays_of_lengths():
    lengths = [5, 30, 12]
    assert CropSampler(np.array(lengths), 4, 0).draw(3, 8, range(8)) == CropSampler(lengths, 4, 0).draw(
        3, 8, range(8)
    )


def test_no_clips():
    with pytest.raises(ValueError, match="no clips to sample from"):
        CropSampler([], 4, 0)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 20), SEEDS, st.integers(0, 5))
def test_a_row_goes_through_all_recordings_chunk_after_chunk(lengths, chunk, seed, row):
    sampler = ConsecutiveSampler(lengths, chunk, seed)
    num_chunks = [-(-length // chunk) for length in lengths]
    total = sum(num_chunks)
    found = [sampler.draw(step, range(row, row + 1))[0] for step in range(2 * total)]
    for one in (found[:total], found[total:]):
        recordings: dict[int, list[Chunk]] = {}
        for place in one:
            recordings.setdefault(place.recording, []).append(place)
        # Each once, whole, in the order of time.
        assert sorted(parts[0].clip for parts in recordings.values()) == list(range(len(lengths)))
        for parts in recordings.values():
            assert len({part.clip for part in parts}) == 1
            assert [part.start for part in parts] == [i * chunk for i in range(num_chunks[parts[0].clip])]
    numbers = [place.recording for place in found]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 2 * len(lengths) - 1


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 20), SEEDS, st.integers(2, 8), st.data())
def test_any_order_and_any_rows_give_the_same_chunks(lengths, chunk, seed, batch_size, data):
    steps = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    whole = {step: ConsecutiveSampler(lengths, chunk, seed).draw(step, range(batch_size)) for step in steps}
    sampler = ConsecutiveSampler(lengths, chunk, seed)
    for step in data.draw(st.permutations(steps)):
        row = data.draw(st.integers(0, batch_size - 1))
        assert sampler.draw(step, range(row, batch_size)) == whole[step][row:]


def test_rows_have_orders_of_their_own():
    sampler = ConsecutiveSampler([10] * 12, 10, 0)
    orders = {tuple(sampler.draw(step, range(4))[row].clip for step in range(12)) for row in range(4)}
    assert len(orders) == 4
    with pytest.raises(ValueError, match="no clips"):
        ConsecutiveSampler([], 10, 0)
