"""How the kernels of a step follow one another on a GPU.

Import this and the kernels only where Triton is: with `TRITON_INTERPRET=1` in the environment its interpreter
runs them on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch


def launch_options(device: torch.device) -> dict[str, Any]:
    """Keywords for every launch of a step's kernels.

    From Hopper on, a kernel may start before the one before it has ended: it reads its weights, and then
    waits for what that one writes (`griddepcontrol`, programmatic dependent launch).
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9:
        return {"OVERLAP": True, "launch_pdl": True}
    return {"OVERLAP": False}
