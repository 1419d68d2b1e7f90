"""Reading ahead: the order of the items, errors where they belong, bounded memory, no thread left."""

import threading
import time
from contextlib import closing

from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.tokenize.read_ahead import read_ahead


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 6), max_size=12),
    num_threads=st.integers(1, 4),
    num_ahead=st.integers(1, 6),
    depth=st.integers(1, 3),
)
def test_the_order_is_that_of_the_items(lengths, num_threads, num_ahead, depth):
    def produce(item):
        number, length = item
        time.sleep(0.001 * (number % 3))
        for part in range(length):
            yield number, part

    items = list(enumerate(lengths))
    ahead = read_ahead(items, produce, num_threads=num_threads, num_ahead=num_ahead, depth=depth)
    found = [(item, list(parts)) for item, parts in ahead]
    assert found == [(item, list(produce(item))) for item in items]
    assert readers() == []


def test_an_error_comes_where_it_was_raised_and_the_others_are_unaffected():
    def produce(item):
        yield item
        if item == 1:
            raise ValueError("torn")
        yield -item

    found = []
    for _, parts in read_ahead(range(4), produce, num_threads=2, num_ahead=3, depth=1):
        try:
            found.extend(parts)
        except ValueError as error:
            found.append(str(error))
    assert found == [0, 0, 1, "torn", 2, -2, 3, -3]


def test_no_more_is_made_than_the_bounds_allow():
    made: list[int] = []

    def produce(item):
        for _ in range(10):
            made.append(item)
            yield item

    ahead = read_ahead(range(100), produce, num_threads=2, num_ahead=4, depth=3)
    with closing(ahead):
        _, parts = next(ahead)
        next(parts)
        time.sleep(0.3)
        # Two threads, each with a full queue and one part in its hands, and one part that was taken.
        assert len(made) <= 2 * (3 + 1) + 1
        assert set(made) == {0, 1}
    assert readers() == []


def test_closing_ends_threads_that_wait_for_room():
    def produce(_):
        while True:
            yield 0

    with closing(read_ahead(range(5), produce, num_threads=3, num_ahead=5, depth=1)) as ahead:
        next(ahead)
        assert len(readers()) == 3
    assert readers() == []
