"""Several processes, started by a launcher such as torchrun, that share the work on one set of files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from ..core.run import num_processes

Item = TypeVar("Item")

TIMEOUT = timedelta(days=7)
"""How long a process waits for the slowest; the launcher ends all when one fails."""


def gather(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, in the order of the processes; without a launcher those that are given."""
    if num_processes() == 1:
        return list(items)
    if not dist.is_initialized():
        # On the CPU, whatever the devices: names and hashes are exchanged, no tensors.
        dist.init_process_group("gloo", timeout=TIMEOUT)
    parts: list[Sequence[Item] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    # Gloo's thread still has to drop its tensors, for which it needs the interpreter: where it asks for that
    # while the process ends, the process is aborted, its work done.
    time.sleep(0.02)
    return [item for part in parts if part is not None for item in part]
