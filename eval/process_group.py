"""Several processes, started by a launcher such as torchrun, that share the work on one set of files."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch.distributed.rendezvous import rendezvous

from ..core.run import num_processes

Told = tuple[str, str | None, str]
"""What a process tells of a file."""

TIMEOUT = timedelta(days=7)
"""How long a process waits for the slowest; the launcher ends all when one fails."""

PART_BYTES = 2**20
"""The store closes the connection of who sends it more than 8 MiB at once."""

_CALLS = itertools.count()


@functools.cache
def _rendezvous() -> tuple[Any, int, int]:
    """The launcher's store of keys and values, this process's rank, and how many there are."""
    store, rank, world_size = next(rendezvous("env://"))
    store.set_timeout(TIMEOUT)
    return store, rank, world_size


def gather(items: Sequence[Told]) -> list[Told]:
    """The items of all processes, in the order of the processes; without a launcher those that are given.

    Every process must call it as often as the others. The items go through the store that the launcher lets
    processes find each other by: they are names and hashes, and need no group of tensors, whose threads would
    have to be ended.
    """
    if num_processes() == 1:
        return list(items)
    return exchange(items, f"tokkata/gather/{next(_CALLS)}", *_rendezvous())


def exchange(items: Sequence[Told], call: str, store: Any, rank: int, world_size: int) -> list[Told]:
    """`gather` through a store, under keys that begin with `call`."""
    text = json.dumps(items).encode()
    parts = [text[start : start + PART_BYTES] for start in range(0, len(text), PART_BYTES)]
    for number, part in enumerate(parts):
        store.set(f"{call}/{rank}/{number}", part)
    store.set(f"{call}/{rank}", str(len(parts)))
    found: list[Told] = []
    for other in range(world_size):
        num_parts = int(store.get(f"{call}/{other}"))
        whole = b"".join(store.get(f"{call}/{other}/{number}") for number in range(num_parts))
        found += [(name, sha256, reason) for name, sha256, reason in json.loads(whole)]
    store.set(f"{call}/read by {rank}", "")
    if rank == 0:  # whose store it may be
        store.wait([f"{call}/read by {other}" for other in range(world_size)])
    return found
