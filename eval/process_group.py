"""Several processes, started by a launcher such as torchrun, that share the work on one set of files."""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed.rendezvous import rendezvous

from ..core.run import num_processes

Item = TypeVar("Item")

TIMEOUT = timedelta(days=7)
"""How long a process waits for the slowest; the launcher ends all when one fails."""

_CALLS = itertools.count()


@functools.cache
def _rendezvous() -> tuple[Any, int, int]:
    """The launcher's store of keys and values, this process's rank, and how many there are."""
    store, rank, world_size = next(rendezvous("env://"))
    store.set_timeout(TIMEOUT)
    return store, rank, world_size


def gather(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, in the order of the processes; without a launcher those that are given.

    Every process must call it as often as the others. The items go through the store that the launcher lets
    processes find each other by: they are names and hashes, and need no group of tensors, whose threads would
    have to be ended.
    """
    if num_processes() == 1:
        return list(items)
    store, rank, world_size = _rendezvous()
    call = f"tokkata/gather/{next(_CALLS)}"
    store.set(f"{call}/{rank}", pickle.dumps(list(items)))
    parts: list[list[Item]] = [
        pickle.loads(store.get(f"{call}/{other}"))  # noqa: S301  # from processes of this job
        for other in range(world_size)
    ]
    store.set(f"{call}/read by {rank}", "")
    if rank == 0:  # whose store it may be
        store.wait([f"{call}/read by {other}" for other in range(world_size)])
    return [item for part in parts for item in part]
