"""Reading ahead of the codec: threads that fill short queues, whose order is that of the items."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Part = TypeVar("Part")

# How long a thread with nowhere to put its part sleeps before it looks whether anyone still wants it.
_WAKE_S = 0.1


class _Channel(Generic[Part]):
    """A queue of limited length between one reader thread and the consumer."""

    def __init__(self, depth: int, closed: threading.Event) -> None:
        self._parts: queue.Queue[tuple[Part] | None] = queue.Queue(depth)
        self._closed = closed
        self.future: Future[None]

    def fill(self, parts: Iterator[Part]) -> None:
        """Run in a reader thread; an error ends it, and is raised again by `drain`."""
        try:
            for part in parts:
                self._put((part,))
                if self._closed.is_set():
                    return
        finally:
            self._put(None)

    def _put(self, entry: tuple[Part] | None) -> None:
        while not self._closed.is_set():
            try:
                self._parts.put(entry, timeout=_WAKE_S)
            except queue.Full:
                continue
            return

    def drain(self) -> Iterator[Part]:
        while (entry := self._parts.get()) is not None:
            yield entry[0]
        self.future.result()


def read_ahead(
    items: Iterable[Item],
    produce: Callable[[Item], Iterator[Part]],
    *,
    num_threads: int,
    num_ahead: int,
    depth: int,
) -> Generator[tuple[Item, Iterator[Part]]]:
    """Each item with what `produce` makes of it, in the order of the items; made in threads, ahead of time.

    Each item's parts have to be used up before the next item is asked for. What `produce` raises comes out of
    the parts, at the place where it was raised. At most `num_ahead` items are begun, and `depth` parts of
    each made, so memory has a bound. The threads end when the iterator is closed.
    """
    closed = threading.Event()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="reader")
    begun: deque[tuple[Item, _Channel[Part]]] = deque()
    rest = iter(items)

    def begin(number: int) -> None:
        for item in itertools.islice(rest, number):
            channel: _Channel[Part] = _Channel(depth, closed)
            # Threads take items in order, so the one that is waited for always has a thread.
            channel.future = pool.submit(channel.fill, produce(item))
            begun.append((item, channel))

    try:
        begin(num_ahead)
        while begun:
            item, channel = begun.popleft()
            yield item, channel.drain()
            begin(1)
    finally:
        closed.set()
        pool.shutdown(wait=True, cancel_futures=True)
