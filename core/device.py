"""Where to compute when nothing says otherwise."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """The current accelerator (CUDA, MPS, …) if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")
