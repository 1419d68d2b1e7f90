"""Where to compute when nothing says otherwise."""

from __future__ import annotations

import os

import torch


def best_device() -> torch.device:
    """The current accelerator (CUDA, MPS, …) if there is one, else the CPU.

    Of several accelerators each process of a launcher takes its own, by `LOCAL_RANK`; where there are more
    processes than accelerators, they share them in turn.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    if count == 1:
        return found
    return torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")) % count)
