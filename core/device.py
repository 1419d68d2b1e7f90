"""Where to compute when nothing says otherwise."""

from __future__ import annotations

import os

import torch

from .errors import UserError


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


def device_named(name: str) -> torch.device:
    """The device that the option --device names; raises `UserError` if it cannot be used."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without CUDA
        raise UserError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device
